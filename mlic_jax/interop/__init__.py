"""Conversion of weights of the PyTorch implementations of MLIC."""
