"""Where a graph leaves the one it should equal: the first tensors that are off, and the nodes to compute wider."""
