"""Data sets: fetched once, checked byte for byte, read as tensors."""
