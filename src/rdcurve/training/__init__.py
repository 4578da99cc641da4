"""Training loops, one file per kind of model."""
