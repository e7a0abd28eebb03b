"""How fast memory is where a backend computes: bytes of one pass over a large tensor, in a second.

    python -m benchmarks.bandwidth --backend cuda

A CPU reads it, as a decode step does the weights; a GPU negates it in place, which counts both ways.
"""

import argparse
import json
from collections.abc import Callable
from statistics import median

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.profiling import probe
from vlm_trt.runtime.backends import choose_backend

_PAIRS = 5


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


def beside_floor(bundle: Bundle, precision: Precision, decode_ms: Callable[[], float]) -> dict[str, float]:
    """A decode step beside the time in which this CPU reads the decoder's weights without the embeddings.

    Each is measured in turn with the other: how fast two cores read depends on where they lie on the machine below, and
    changes within minutes (33 to 57 GB/s on the same EPYC).
    """
    unread = bundle.manifest.model.decoder.unread_bytes(precision)
    read = bundle.graph(Component.DECODER, precision).weight_bytes - unread
    pairs = [(decode_ms(), 1000 * read / bandwidth("cpu", 512)) for _ in range(_PAIRS)]
    floor = median(reading for _, reading in pairs)
    return {
        "decode_step_ms": round(median(step for step, _ in pairs), 2),
        "decode_floor_ms": round(floor, 2),
        "times_the_floor": round(median(step / reading for step, reading in pairs), 2),
        "bytes_read_per_second": round(1000 * read / floor),
    }


if __name__ == "__main__":
    main()
