"""Everything that only a GPU can tell, in one run without a network: parity, milliseconds, the floor, fp16 and bf16.

    python -m benchmarks.gpu /data/scratch
    python -m benchmarks.gpu /data/scratch --size small --backend cpu --precision fp32 fp16 -o small.json

A random checkpoint is written and exported, its own answers are computed in fp32 on the CPU, and every backend runs
every precision in a process of its own. What does not start is in the result with its reason. The result is written
after each run, so that it is there when the machine is gone. The official shape needs 60 GB of disk, 80 GB where
engines are built.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.export_full_size import watched
from benchmarks.make_checkpoint import write_checkpoint
from vlm_trt.bundle.output import require_output, write_output
from vlm_trt.bundle.staging import replace_file
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.engines.gpus import GPUS, Gpu
from vlm_trt.runtime.environment import environment

# The official layout at three sizes, of `make_checkpoint`.
SIZES = {"small": "XS4", "middle": "S", "official": "FULL"}
RUN_TIMEOUT_SECONDS = 3600
Figures = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for checkpoint and bundles")
    parser.add_argument("--size", choices=SIZES, default="official")
    parser.add_argument("--checkpoint", type=Path, help="measure this one instead of a random one")
    parser.add_argument("--backend", nargs="*", default=["cuda", "cuda-graph", "tensorrt", "tensorrt-rtx"])
    parser.add_argument("--precision", nargs="*", choices=["fp32", "fp16", "bf16"], default=["fp16", "bf16"])
    parser.add_argument("--max-seq-tokens", type=int, default=2048)
    parser.add_argument("--max-batch", type=int, default=4)
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/gpu.json"))
    arguments = parser.parse_args(words)
    require_output(arguments.output)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.checkpoint or random_checkpoint(arguments.folder, arguments.size)
    machine = environment()
    found: Figures = {
        "environment": machine,
        "checkpoint": f"random, {arguments.size}" if arguments.checkpoint is None else checkpoint.name,
        "max_seq_tokens": arguments.max_seq_tokens,
        "max_batch": arguments.max_batch,
        "bytes_per_second": bytes_per_second(arguments.backend, machine["gpu"]),
        "runs": [],
    }
    expected = arguments.folder / "expected.npz"
    expected.unlink(missing_ok=True)
    limits = ("--max-seq-tokens", arguments.max_seq_tokens, "--max-batch", arguments.max_batch)
    refused = child("gpu_expected", checkpoint, expected, *limits)
    for precision in arguments.precision:
        bundle, export = exported(checkpoint, arguments, precision)
        for backend in arguments.backend:
            print(f"{backend}, {precision} ...", file=sys.stderr, flush=True)
            run = one_run(bundle, backend, precision, None if refused else expected)
            with_floors(run, found["bytes_per_second"])
            if refused and "parity" in run:
                run["parity"] = refused
            found["runs"].append({"backend": backend, "precision": precision, "export": export, **run})
            write_output(arguments.output, json.dumps(found, indent=1) + "\n")
            forget_engines(bundle)
        shutil.rmtree(bundle)
    report(found, arguments.output)


def random_checkpoint(folder: Path, size: str) -> Path:
    """A checkpoint of that shape, made once per folder."""
    checkpoint = folder / f"checkpoint-{size}"
    if not checkpoint.exists():
        print(f"writing {checkpoint} ...", file=sys.stderr, flush=True)
        write_checkpoint(checkpoint, SIZES[size])
    return checkpoint


def exported(checkpoint: Path, arguments: argparse.Namespace, precision: str) -> tuple[Path, Figures]:
    """The bundle of one precision, and what exporting it took. One at a time: a disk may not hold two."""
    bundle = arguments.folder / f"bundle-{precision}"
    shutil.rmtree(bundle, ignore_errors=True)
    limits = ("--max-seq-tokens", arguments.max_seq_tokens, "--max-batch", arguments.max_batch)
    seconds, peak = watched("export", checkpoint, bundle, "--precision", precision, *limits)
    return bundle, {"seconds": round(seconds, 1), "peak_ram_bytes": peak}


def bytes_per_second(backends: Sequence[str], gpus: object) -> dict[str, Any]:
    """Memory bandwidth: of the GPU's data sheet, and measured; the reason where there is none."""
    known = data_sheet(str(gpus))
    found: dict[str, Any] = {"data_sheet": None if known is None else known.bandwidth}
    for place in ["cuda"] * any(name != "cpu" for name in backends) + ["cpu"] * ("cpu" in backends):
        measured = child("bandwidth", "--backend", place)
        found[place] = measured.get("bytes_per_second", measured.get("reason"))
    return found


def data_sheet(gpus: str) -> Gpu | None:
    """What is known of the first GPU, by the words of its name.

    Args:
        gpus: as nvidia-smi names them, such as "NVIDIA A100-SXM4-80GB, 81920 MiB, 570.86".
    """
    words = set(re.split(r"[^A-Za-z0-9]+", gpus.partition(",")[0].upper()))
    fitting = [gpu for gpu in GPUS if set(gpu.name.upper().split("-")) <= words]
    return max(fitting, key=lambda gpu: len(gpu.name), default=None) if "LAPTOP" not in words else None


def one_run(bundle: Path, backend: str, precision: str, expected: Path | None) -> Figures:
    """What `benchmarks.gpu_run` finds, or how it ended."""
    target = bundle.parent / "run.json"
    target.unlink(missing_ok=True)
    known = () if expected is None else ("--expected", expected)
    ended = child("gpu_run", bundle, target, "--backend", backend, "--precision", precision, *known)
    found: Figures = json.loads(target.read_text()) if target.exists() else ended
    return found


def child(module: str, *words: object) -> Figures:
    """What a benchmark prints as JSON in a process of its own; a crash or a hang is a reason like any other."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *(str(word) for word in words)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return {"reason": f"no end after {RUN_TIMEOUT_SECONDS} s"}
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        return {"reason": f"ended with code {done.returncode}: {last}"}
    lines = done.stdout.strip().splitlines()
    found: Figures = json.loads(lines[-1]) if lines else {}
    return found


def with_floors(run: Figures, bandwidths: dict[str, Any]) -> None:
    """Beside each decode step: the time that its bytes need from memory, and how many times that it took."""
    steps = run.get("decode")
    if not isinstance(steps, list):
        return
    place = "cpu" if run["runs_on"].endswith("cpu") else "cuda"
    for step in steps:
        for kind in ("data_sheet", "cuda") if place == "cuda" else ("cpu",):
            if isinstance(bandwidths.get(kind), float):
                floor = 1000 * step["bytes"] / bandwidths[kind]
                step[f"floor_ms_{kind}"] = round(floor, 3)
                step[f"times_floor_{kind}"] = round(step["ms"]["median"] / floor, 2)


def forget_engines(path: Path) -> None:
    """Removes a backend's engines: beside those of the next one, a disk may not hold them."""
    bundle = Bundle.open(path)
    paths = {engine.plan.path for engine in bundle.manifest.engines}
    replace_file(path / MANIFEST, bundle.manifest.without_engines(paths).dumps())
    shutil.rmtree(path / "engines", ignore_errors=True)


def report(found: Figures, output: Path) -> None:
    """A line per run, on stderr."""
    for run in found["runs"]:
        told = run.get("reason") or f"parity {run['parity']}, answer {run['answer']}"
        print(f"{run['backend']} {run['precision']}: {told}", file=sys.stderr)
    print(f"written to {output}", file=sys.stderr)


if __name__ == "__main__":
    main()
