"""Stand-ins for NVIDIA's libraries, on which the real CUDA provider of onnxruntime-gpu runs without a GPU."""
