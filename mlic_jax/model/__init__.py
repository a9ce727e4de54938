"""The model: transforms, the multi-reference entropy model, and the codec module (mlic.py)."""
