"""Packed graphs beside the graphs themselves on ONNX Runtime CPU: load, memory of its own, and what a step takes.

    python -m benchmarks.packed BUNDLE [--precision fp32 …] > benchmarks/results/packed.json

Each precision is packed here first; what that takes is part of the result. Every load is a process of its own, the two
forms in turn: A B A B. The file of hashes is warm, as it is from the second load on, and so is the page cache. Medians;
a ratio is the median over pairs. Unpaired, beside them: fp32 that is packed in memory at every load
(`load(prepack=True)`).
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.build_full_size import anonymous_bytes
from benchmarks.stages import progress
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.packed import PackedCpuBackend
from vlm_trt.runtime.packing import pack
from vlm_trt.runtime.step_inputs import Step

PROMPT_TOKENS, PREFILLS, STEPS = 298, 3, 31
FORMS = {"graph": CpuBackend, "packed": PackedCpuBackend, "packed at load": lambda: CpuBackend(prepack=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", type=Precision, action="append", choices=Precision)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--measure", choices=FORMS, help="only load and run that form of one precision")
    arguments = parser.parse_args()
    precisions = arguments.precision or [Precision.FP32]
    if arguments.measure:
        print(json.dumps(measured(arguments.bundle, precisions[0], arguments.measure)))
        return
    found: dict[str, Any] = {"environment": environment()}
    for precision in precisions:
        found[precision] = compared(arguments.bundle, precision, arguments.pairs)
    print(json.dumps(found, indent=1))


def compared(bundle: Path, precision: Precision, pairs: int) -> dict[str, Any]:
    """Both forms, and what packing took."""
    started = perf_counter()
    entries = pack(bundle, precision, progress)
    graphs = [Bundle.open(bundle).graph(one.component, precision) for one in entries]
    found: dict[str, Any] = {
        "pack_seconds": round(perf_counter() - started, 1),
        "weight_bytes": sum(graph.weight_bytes for graph in graphs),
        "packed_bytes": sum(one.weights.size for one in entries),
    }
    runs: dict[str, list[dict[str, float]]] = {form: [] for form in FORMS}
    for _ in range(pairs):
        for form in FORMS:
            progress(f"{precision}: {form}")
            line = [sys.executable, "-m", "benchmarks.packed", str(bundle), "--precision", precision, "--measure", form]
            runs[form].append(json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout))
    for form, results in runs.items():
        found[form] = {name: round(median(one[name] for one in results), 3) for name in results[0]}
    for name in ("load_seconds", "prefill_ms", "decode_step_ms"):
        ratios = [packed[name] / graph[name] for graph, packed in zip(runs["graph"], runs["packed"], strict=True)]
        found[f"packed / graph, {name}"] = round(median(ratios), 3)
    return found


def measured(path: Path, precision: Precision, form: str) -> dict[str, float]:
    """One load, a prompt of text, and the steps after it."""
    bundle = Bundle.open(path)
    before, started = anonymous_bytes(os.getpid()), perf_counter()
    engine = open_engine(bundle, precision, FORMS[form]())
    load_seconds, loaded = perf_counter() - started, anonymous_bytes(os.getpid()) - before
    decoder, length = engine.model.decoder, engine.limits.max_seq_tokens
    table = family(engine.model.family).position_table(decoder, PromptShape(PROMPT_TOKENS), length)
    ids, none = np.arange(PROMPT_TOKENS) + 5, np.full(PROMPT_TOKENS, -1)
    prefills = []
    for _ in range(1 + PREFILLS):  # the first one warms up
        engine.cache.truncate(0, 0)
        started = perf_counter()
        engine.prefill(0, ids, none, None, table)
        prefills.append(1e3 * (perf_counter() - started))
    steps = []
    for token in range(STEPS):
        started = perf_counter()
        engine.decode([Step(0, 5 + token, table)])
        steps.append(1e3 * (perf_counter() - started))
    return {
        "load_seconds": load_seconds,
        "loaded_anonymous_bytes": loaded,
        "prefill_ms": median(prefills[1:]),
        "decode_step_ms": median(steps),
    }


if __name__ == "__main__":
    main()
