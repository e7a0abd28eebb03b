"""How fast memory is where a backend computes: bytes read and written in a second by one pass over a large tensor.

    python -m benchmarks.bandwidth --backend cuda

The tensor is negated in place, so that a CPU does not first read what it is about to overwrite.
"""

import argparse
import json
import statistics
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
from onnx import TensorProto, helper, save

from bundle.errors import VlmTrtError
from runtime.backends import choose_backend

RUNS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--mib", type=int, default=1024, help="of the tensor")
    arguments = parser.parse_args()
    try:
        print(json.dumps({"bytes_per_second": bandwidth(arguments.backend, arguments.mib)}))
    except VlmTrtError as error:
        print(json.dumps({"reason": str(error)}))


def bandwidth(name: str, mib: int) -> float:
    """Bytes per second, median of the runs.

    Raises:
        VlmTrtError: the backend does not start here, or lacks the memory.
    """
    shape = (mib, 256, 1024)  # fp32: a MiB per row
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "pass", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    backend = choose_backend(name)
    with TemporaryDirectory() as folder:
        save(model, Path(folder) / "pass.onnx")
        session = backend.open(Path(folder) / "pass.onnx")
    memory = backend.upload(np.ones(shape, np.float32), "float32")
    binding = memory.rows(0, mib)
    seconds = []
    for _ in range(RUNS):
        started = perf_counter()
        session.run({"x": binding}, {"y": binding})
        seconds.append(perf_counter() - started)
    return 2 * 4 * prod(shape) / statistics.median(seconds[2:])


if __name__ == "__main__":
    main()
