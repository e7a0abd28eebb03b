"""A quantized model's stages against fp32 on ONNX Runtime CPU, runs paired A B A B.

    python -m benchmarks.quantized_speed /data/scratch > benchmarks/results/quantized_speed.json

A random checkpoint of middle size (decoder 1024×16 layers, vocabulary 151,936; vision 512×8), a prompt of 298 tokens
with one picture. Random weights answer nothing right, so nothing is judged. The floor of a decode step: the time in
which its weights are read here (`benchmarks/bandwidth.py`).
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.bandwidth import beside_floor
from benchmarks.quantization import write_samples
from benchmarks.stages import Prompt, decode_ms, exported, parsed, prefill_ms, progress, timed
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import read_recipe
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.verification.verify import verify

RECIPES = ("int8-weight", "int8", "int4")


def main() -> None:
    arguments = parsed(__doc__)
    bundle, _ = exported(arguments.folder, arguments.size, 1024)
    quantized(bundle.path, arguments.folder)
    bundle = Bundle.open(bundle.path)
    found = {
        "size": arguments.size,
        "stages": {name: compared(bundle, Precision(name), arguments.pairs) for name in RECIPES},
        "decode_beside_its_floor": {name: decode_beside_floor(bundle, Precision(name)) for name in ("fp32", *RECIPES)},
        "environment": environment(),
    }
    print(json.dumps(found, indent=1))


def quantized(path: Path, folder: Path) -> None:
    """Every recipe's graphs into the bundle, once."""
    have = Bundle.open(path).manifest
    if have.verification(Precision.FP32) is None:
        progress("verify fp32")
        assert verify(path, precision="fp32", backend_name="cpu").passed
    samples = write_samples(folder / "samples", noise=False, count=16)
    for name in RECIPES:
        if Precision(name) not in have.precisions():
            progress(f"quantize {name}")
            choices = Choices(read_recipe(name), samples=str(samples))
            progress(f"  {quantize(path, choices, None, say=progress).seconds:.0f} s")


def compared(bundle: Bundle, precision: Precision, pairs: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of both, and the median of the paired ratios fp32 / quantized, per stage."""
    progress(f"measure {precision}")
    sides = [runs(open_engine(bundle, one, CpuBackend())) for one in (Precision.FP32, precision)]
    found = {}
    for stage in sides[0]:
        before, after = sides[0][stage], sides[1][stage]
        before(), after()  # warm up
        times = [(before(), after()) for _ in range(pairs)]
        found[stage] = {
            "fp32": round(statistics.median(a for a, _ in times), 2),
            "quantized": round(statistics.median(b for _, b in times), 2),
            "times_faster": round(statistics.median(a / b for a, b in times), 2),
        }
    return found


def runs(engine: Engine) -> dict[str, Callable[[], float]]:
    """Stage → one timed run of it, in milliseconds."""
    prompt = Prompt(engine)
    patches = engine.encode_vision(prompt.pictures)
    features = engine.backend.upload(
        np.array(engine.resample(patches, prompt.pictures).read()[0]), engine.precision.dtype
    )
    return {
        "vision_encoder": lambda: timed(lambda: engine.encode_vision(prompt.pictures)),
        "resampler": lambda: timed(lambda: engine.resample(patches, prompt.pictures)),
        "prefill": lambda: prefill_ms(engine, prompt, features),
        "decode_step": lambda: decode_ms(engine, prompt, features),
    }


def decode_beside_floor(bundle: Bundle, precision: Precision) -> dict[str, float]:
    """Of weights packed at load, in every precision."""
    progress(f"measure {precision} beside its floor")
    engine = open_engine(bundle, precision, CpuBackend(prepack=True))
    return beside_floor(bundle, precision, runs(engine)["decode_step"])


if __name__ == "__main__":
    main()
