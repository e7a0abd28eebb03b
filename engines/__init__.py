"""Graphs in, TensorRT engines out."""
