"""Augmentations: the built-in ones, and chains of them."""
