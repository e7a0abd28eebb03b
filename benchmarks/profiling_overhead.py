"""What noting every stage costs, off and shown to NVTX and OpenTelemetry: microseconds, and shares of a decode step.

    python -m benchmarks.profiling_overhead BUNDLE > benchmarks/results/profiling_overhead.json

A decode step notes itself, and for each sequence the sampling and the text: three stages with one sequence. The step is
that of the bundle on ONNX Runtime CPU.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.profiling.measure import measure
from vlm_trt.profiling.workload import Workload
from vlm_trt.runtime import tracing
from vlm_trt.runtime.choice import choose
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.timing import StageClock

STAGES_PER_STEP = 3
ROUNDS, STAGES = 15, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    arguments = parser.parse_args()
    model = choose(arguments.bundle, backend="cpu", allow_unverified=True).load()
    spans = [span for one in measure(model, Workload(new_tokens=32), 5, 2).iterations for span in one.spans]
    step_us = median(span.seconds for span in spans if span.stage == "decode_step") * 1e6
    found: dict[str, Any] = {"decode_step_us": round(step_us, 1), "environment": environment()}
    for tool in (None, "nvtx", "opentelemetry"):
        try:
            tracing.trace_with(tool)
        except IncompatibleError as error:
            found[str(tool)] = str(error)
            continue
        noted = stage_us()
        share = STAGES_PER_STEP * noted / step_us
        found["off" if tool is None else tool] = {"stage_us": round(noted, 3), "of_a_decode_step": round(share, 5)}
    print(json.dumps(found, indent=1))


def stage_us() -> float:
    """Microseconds that noting one empty stage takes, the loop around it taken off: median of rounds."""
    return median(round_us(noting=True) - round_us(noting=False) for _ in range(ROUNDS))


def round_us(*, noting: bool) -> float:
    clock = StageClock()
    started = perf_counter()
    if noting:
        for _ in range(STAGES):
            with clock.stage("decode_step"):
                pass
    else:
        for _ in range(STAGES):
            pass
    return (perf_counter() - started) * 1e6 / STAGES


if __name__ == "__main__":
    main()
