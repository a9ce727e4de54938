"""Convolutions that XLA computes slowly on CPU, computed in faster ways."""
