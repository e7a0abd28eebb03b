"""How large the parts of a graph are that is too large to be run whole; asked before anything of onnx is loaded."""

PART_BYTES = 1 << 30  # weights, counted in fp32; a table that is larger is a part of its own
