"""Graphs against the model: the only room that may import both the torch modules and the runtime."""
