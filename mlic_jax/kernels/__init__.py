"""Fast convolutions on CPU, where those of XLA are slow."""
