"""Compilation, its caches on disk, and the devices that programs are compiled for."""
