"""The official 9.6 B shape with 4-bit weights on ONNX Runtime CPU: loads, memory, and a token against its floor.

    python -m benchmarks.run_full_size /data/scratch > benchmarks/results/run_full_size.json

Random weights: exported in fp32, whose activations ONNX Runtime has 4-bit kernels for, and quantized without samples. A
prompt of 298 tokens with one picture. The floor of a decode step: the time in which its weights are read here
(`benchmarks/bandwidth.py`). Then the graphs are packed, and the same is asked of them. The checkpoint is
removed after the export, and what is in the bundle already is used again; about 72 GB are needed at the path.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.bandwidth import beside_floor
from benchmarks.build_full_size import INT4, anonymous_bytes, command
from benchmarks.make_checkpoint import SIZES, write_checkpoint
from benchmarks.packed import FORMS
from benchmarks.stages import PROMPT_TOKENS, Prompt, decode_ms, prefill_ms, timed
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="FULL")
    parser.add_argument("--measure", choices=FORMS, help="only load and run what is there, in that form")
    arguments = parser.parse_args()
    bundle = arguments.folder / "bundle-fp32"
    if arguments.measure:
        print(json.dumps(measured(Bundle.open(bundle), arguments.measure)))
        return
    found: dict[str, Any] = {"size": arguments.size, "environment": environment()}
    found |= prepared(arguments.folder, bundle, arguments.size)
    found |= alone(arguments.folder, "graph")
    found["pack_int4"] = command("pack", bundle, "--precision", Precision.INT4)
    found["packed"] = alone(arguments.folder, "packed")
    print(json.dumps(found, indent=1))


def prepared(folder: Path, bundle: Path, size: str) -> dict[str, Any]:
    """Both sets of graphs, made where they are missing; seconds and memory of what was done."""
    found, checkpoint, recipe = {}, folder / "checkpoint", folder / "int4.toml"
    if not bundle.exists():
        write_checkpoint(checkpoint, size)
        limits = ("--max-seq-tokens", 1024, "--max-batch", 1)
        found["export_fp32"] = command("export", checkpoint, bundle, "--precision", "fp32", *limits)
        shutil.rmtree(checkpoint)
    if Precision.INT4 not in Bundle.open(bundle).manifest.precisions():
        recipe.write_text(INT4)
        found["quantize_int4"] = command("quantize", bundle, "--recipe", recipe, "--evaluate", "none", "--unverified")
    return found


def alone(folder: Path, form: str) -> dict[str, Any]:
    """What a process measures that does nothing else, so that its memory is told."""
    line = [sys.executable, "-m", "benchmarks.run_full_size", str(folder), "--measure", form]
    found: dict[str, Any] = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    return found


def measured(bundle: Bundle, form: str) -> dict[str, Any]:
    """Load and stages of the 4-bit graphs."""
    started = perf_counter()
    engine = open_engine(bundle, Precision.INT4, FORMS[form]())
    load_seconds = perf_counter() - started
    loaded = anonymous_bytes(os.getpid())
    prompt = Prompt(engine)
    vision_ms = timed(lambda: engine.encode_vision(prompt.pictures))
    patches = engine.encode_vision(prompt.pictures)
    features = engine.backend.upload(
        np.array(engine.resample(patches, prompt.pictures).read()[0]), engine.precision.dtype
    )
    prefill = prefill_ms(engine, prompt, features)
    components = bundle.manifest.model.components
    return {
        "weight_bytes": {one.value: bundle.graph(one, Precision.INT4).weight_bytes for one in components},
        "load_seconds": round(load_seconds, 1),
        "loaded_anonymous_bytes": loaded,
        "prompt_tokens": PROMPT_TOKENS,
        "vision_encoder_ms": round(vision_ms),
        "prefill_ms": round(prefill),
        **beside_floor(bundle, Precision.INT4, lambda: decode_ms(engine, prompt, features)),
    }


if __name__ == "__main__":
    main()
