"""Graphs in, quantized graphs and a verdict on their answers out."""
