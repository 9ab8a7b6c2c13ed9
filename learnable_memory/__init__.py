"""Learnable memory for Vision Transformers: everything around the model, which is in `vit.py`."""

__version__ = "0.1.0"
