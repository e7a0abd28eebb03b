"""Checkpoint folder in, ONNX graphs out."""
