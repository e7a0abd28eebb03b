"""Synthetic scenes: what is in them, how they look, what can be asked of them."""
