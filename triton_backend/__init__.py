"""A bundle behind NVIDIA's Triton Inference Server: its model repository, and what answers in its Python backend."""
