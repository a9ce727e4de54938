"""How things are computed, whatever the model: convolutions, compiled functions on disk, memory of the host."""
