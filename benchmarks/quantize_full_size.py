"""The official 9.6 B shape in 8 and 4 bits on one host: quantized, built, and run on the CPU; seconds, memory, bytes.

    python -m benchmarks.quantize_full_size /data/scratch > benchmarks/results/quantize_full_size.json

Random weights, quantized from fp16 graphs. Random answers judge nothing, and the float graphs would not fit in the
memory of the host this was written for: so nothing is judged, and the 4-bit recipe goes without balancing, which needs
samples. Memory is anonymous memory: mapped weights, which the system may drop, do not count. The checkpoint is removed
after the export; about 55 GB are needed at the path.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from benchmarks.bandwidth import bandwidth
from benchmarks.export_full_size import family_of
from benchmarks.make_checkpoint import SIZES, write_checkpoint
from benchmarks.quantized_speed import floor_ms, runs
from bundle.signature import Component, Precision
from bundle.store import Bundle
from runtime.environment import environment
from runtime.load import open_engine
from runtime.ort import CpuBackend

# The shipped 4-bit recipe without what needs samples.
INT4 = """kind = "int4"
max_drop = 1
block = 128
[layers]
"decoder.lm_head" = "int8-weight"
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
    shutil.rmtree(bundle, ignore_errors=True)
    if not checkpoint.exists():
        write_checkpoint(checkpoint, arguments.size)
    found: dict[str, Any] = {"size": arguments.size, "target": arguments.target, "environment": environment()}
    found["export_fp16"] = command("export", checkpoint, bundle, "--precision", "fp16")
    shutil.rmtree(checkpoint)
    found["build_fp16_decoder"] = built(bundle, "fp16", arguments.target)
    recipe.write_text(INT4)
    read = bandwidth("cpu", 1024) / 2  # a pass reads and writes
    found["bytes_read_per_second"] = read
    for name, source in (("int8-weight", "int8-weight"), ("int4", str(recipe))):
        precision = Precision.of(name, Precision.FP16)
        options = ("--recipe", source, "--activations", "fp16", "--evaluate", "none", "--unverified")
        made = command("quantize", bundle, *options)
        graphs = [Bundle.open(bundle).graph(component, precision) for component in Component]
        found[precision] = {
            "quantize": made,
            "weight_bytes": {graph.component.value: graph.weights.size for graph in graphs},
            "build_decoder": built(bundle, precision, arguments.target),
            "run_on_cpu": run_on_cpu(Bundle.open(bundle), precision, read),
        }
    print(json.dumps(found, indent=1))


def command(*arguments: object) -> dict[str, Any]:
    """Seconds and peak anonymous memory of a command with all its processes, or what it says and its code."""
    started, peak = perf_counter(), 0
    line = [sys.executable, "-m", "cli", *(str(argument) for argument in arguments)]
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


def built(bundle: Path, precision: str, target: str) -> dict[str, Any]:
    """The decoder's engine, or the sentence that refuses it."""
    options = ("--backend", "tensorrt-rtx", "--target", target, "--precision", precision, "--component", "decoder")
    found = command("build", bundle, *options)
    engines = [one for one in Bundle.open(bundle).manifest.engines if one.precision == precision]
    if "refused" in found:
        return found
    weights = Bundle.open(bundle).graph(Component.DECODER, Precision(precision)).weights.size
    (engine,) = engines
    return found | {
        "builder_seconds": round(engine.seconds, 1),
        "builder_peak_bytes": engine.peak_ram_bytes,
        "engine_bytes": engine.plan.size,
        "copies_of_the_weights": round(engine.peak_ram_bytes / weights, 2),
    }


def run_on_cpu(bundle: Bundle, precision: Precision, bytes_per_second: float) -> dict[str, Any]:
    """Load, and one stage after the other on a prompt of 298 tokens with a picture; medians of three."""
    started = perf_counter()
    engine = open_engine(bundle, precision, CpuBackend())
    loaded = perf_counter() - started
    stages = {stage: round(statistics.median(run() for _ in range(3)), 1) for stage, run in runs(engine).items()}
    floor = floor_ms(bundle, precision, bytes_per_second)
    return {"load_seconds": round(loaded, 1), "stages_ms": stages, "decode_floor_ms": floor}


if __name__ == "__main__":
    main()
