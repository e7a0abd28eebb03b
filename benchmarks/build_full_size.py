"""Engines of the official 9.6 B shape on one host: fp16, and the decoder in 8 and 4 bits; seconds, memory, bytes.

    python -m benchmarks.build_full_size /data/scratch > benchmarks/results/build_full_size.json

Random weights, quantized from fp16 graphs. Random answers judge nothing, and the float graphs would not fit in the
memory of the host this was written for: so nothing is judged, and the 4-bit recipe goes without balancing, which needs
samples. Memory is anonymous memory: mapped weights, which the system may drop, do not count. The checkpoint is removed
after the export, and what is in the bundle already is used again; about 55 GB are needed at the path.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.export_full_size import family_of
from benchmarks.make_checkpoint import SIZES, write_checkpoint
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.report import read_report
from vlm_trt.runtime.environment import environment

# The shipped 4-bit recipe without what needs samples.
INT4 = """kind = "int4"
max_drop = 1
block = 128
[layers]
"vision_encoder.*" = "int8-weight"
"resampler.*" = "int8-weight"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="FULL")
    parser.add_argument("--target", default="sm89")
    arguments = parser.parse_args()
    folder = arguments.folder
    checkpoint, bundle, recipe = folder / "checkpoint", folder / "bundle", folder / "int4.toml"
    found: dict[str, Any] = {"size": arguments.size, "target": arguments.target, "environment": environment()}
    if not bundle.exists():
        write_checkpoint(checkpoint, arguments.size)
        found["export_fp16"] = command("export", checkpoint, bundle, "--precision", "fp16")
        shutil.rmtree(checkpoint)
    for component in PIPELINE:
        found[f"fp16, build {component}"] = built(bundle, Precision.FP16, component, arguments.target)
    found[Precision.FP16] = recorded(Bundle.open(bundle), Precision.FP16)
    recipe.write_text(INT4)
    for name, source in (("int8-weight", "int8-weight"), ("int4", str(recipe))):
        precision = Precision.of(name, Precision.FP16)
        if precision not in Bundle.open(bundle).manifest.precisions():
            options = ("--recipe", source, "--activations", "fp16", "--evaluate", "none", "--unverified")
            found[f"{precision}, quantize"] = command("quantize", bundle, *options)
        if not any(one.precision is precision for one in Bundle.open(bundle).manifest.engines):
            found[f"{precision}, build decoder"] = built(bundle, precision, Component.DECODER, arguments.target)
        found[precision] = recorded(Bundle.open(bundle), precision)
    print(json.dumps(found, indent=1))


def command(*arguments: object) -> dict[str, Any]:
    """Seconds and peak anonymous memory of a command with all its processes, or what it says and its code."""
    started, peak = perf_counter(), 0
    line = [sys.executable, "-m", "vlm_trt.cli", *(str(argument) for argument in arguments)]
    process = subprocess.Popen(line, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        peak = max(peak, sum(anonymous_bytes(pid) for pid in family_of(process.pid)))
        sleep(0.1)
    said = process.stderr.read() if process.stderr else ""
    sys.stderr.write(said)
    if process.returncode:
        return {"exit_code": process.returncode, "refused": said.strip().splitlines()[-1]}
    return {"seconds": round(perf_counter() - started, 1), "peak_bytes": peak}


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def built(bundle: Path, precision: Precision, component: Component, target: str) -> dict[str, Any]:
    """An engine, or the sentence that refuses it."""
    options = ("--backend", "tensorrt-rtx", "--target", target, "--precision", precision, "--component", component)
    return command("build", bundle, *options)


def recorded(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """What the bundle itself says of the quantization, if any, and of the engines."""
    components = bundle.manifest.model.components
    graphs = {component.value: bundle.graph(component, precision).weight_bytes for component in components}
    engines = [one for one in bundle.manifest.engines if one.precision is precision]
    return {
        "quantize_seconds": read_report(bundle, precision).get("seconds"),
        "weight_bytes": graphs,
        "engines": [
            {
                "component": one.component, "seconds": round(one.seconds, 1), "peak_bytes": one.peak_ram_bytes,
                "bytes": one.plan.size, "copies_of_the_weights": round(one.peak_ram_bytes / graphs[one.component], 2),
            }
            for one in engines
        ],
    }  # fmt: skip


if __name__ == "__main__":
    main()
