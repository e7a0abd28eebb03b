"""A decode step of one sequence beside those of four and eight together, in turn: what a batch is worth on a CPU.

    python -m benchmarks.batches BUNDLE --precision fp32 int8-weight int8 > benchmarks/results/batches.json

The sequences stand at 300 positions. A ratio is tokens per second of the batch over those of one, the median over
turns, with attention as the graph has it and as ONNX Runtime's own operator, each in turn.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.stages import progress
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.step_inputs import Step

POSITIONS, BATCHES, FORMS = 300, (1, 4, 8), ("apart", "grouped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", nargs="+", default=["fp32", "int8-weight"])
    parser.add_argument("--turns", type=int, default=15)
    arguments = parser.parse_args()
    bundle, found = Bundle.open(arguments.bundle), []
    for name in arguments.precision:
        engines = {
            form: open_engine(bundle, Precision(name), CpuBackend(prepack=True, grouped=form == "grouped"))
            for form in FORMS
        }
        found.append({"precision": name} | measured(engines, arguments.turns))
        progress(json.dumps(found[-1]))
    print(json.dumps({"environment": environment(), "positions": POSITIONS, "runs": found}, indent=1))


def measured(engines: dict[str, Engine], turns: int) -> dict[str, Any]:
    """Milliseconds of a step by form and batch, and how many times the tokens of one a batch gives in the same time."""
    model, limits = engines["grouped"].model, engines["grouped"].limits
    table = family(model.family).position_table(model.decoder, PromptShape(POSITIONS), limits.max_seq_tokens)
    ids = np.arange(POSITIONS, dtype=np.int64) % model.decoder.vocab_size
    for engine in engines.values():
        for slot in range(max(BATCHES)):
            engine.prefill(slot, ids, np.full(POSITIONS, -1), None, table)
    taken: dict[tuple[str, int], list[float]] = {(form, batch): [] for form in engines for batch in BATCHES}
    for _ in range(turns):
        for (form, batch), times in taken.items():
            steps = [Step(slot, 7, table) for slot in range(batch)]
            started = perf_counter()
            assert engines[form].step_each(steps) == [None] * batch
            times.append(perf_counter() - started)
    return {
        form: {
            "step_ms": {batch: round(1000 * median(taken[form, batch]), 1) for batch in BATCHES},
            "times_the_tokens_of_one": {
                batch: ratio([batch * one for one in taken[form, 1]], taken[form, batch]) for batch in BATCHES
            },
            "times_as_fast_as_apart": {batch: ratio(taken["apart", batch], taken[form, batch]) for batch in BATCHES},
        }
        for form in engines
    }


def ratio(above: list[float], below: list[float]) -> float:
    """The median over pairs."""
    return round(median(one / other for one, other in zip(above, below, strict=True)), 2)


if __name__ == "__main__":
    main()
