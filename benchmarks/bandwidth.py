"""How fast memory is where a backend computes: bytes read and written in a second by one pass over a large tensor.

    python -m benchmarks.bandwidth --backend cuda

The tensor is negated in place, so that a CPU does not first read what it is about to overwrite.
"""

import argparse
import json

from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.profiling import probe
from vlm_trt.runtime.backends import choose_backend


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
    return probe.bandwidth(choose_backend(name), mib)


if __name__ == "__main__":
    main()
