"""Image files, and the data of training: sources, crops and batches."""
