"""The model: transforms, the multi-reference entropy model, and the codec module that joins them (mlic.py)."""
