"""Runs stages of the kit, each in a process of its own with a deadline, so that a crash or a hang costs one step.

    python -m benchmarks.gpu.run install smoke golden --out results [--device cuda] [--size official] [--kit .gpu-kit]

Needs nothing but Python to start. `--device cpu` does everything but CUDA, `--device stand-in` everything but numbers:
ONNX Runtime's real CUDA provider over stand-ins for NVIDIA's libraries (scripts/cuda_provider).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

ROOT = Path(__file__).parents[2]
# Stage → seconds it may take; in the order in which they need one another.
STAGES = {"install": 120, "smoke": 90, "golden": 150, "official": 420, "baselines": 300, "quantized": 90, "rtx": 300}
DEVICES = ("cuda", "cpu", "stand-in")
SIZES = ("official", "small")


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, a JSON file for each stage")
    parser.add_argument("--kit", type=Path, default=ROOT / ".gpu-kit", help="what benchmarks.gpu.prepare made")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vlm-trt-gpu"), help="60 GB for the official shape")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--size", choices=SIZES, default="official")
    parser.add_argument("--precision", nargs="*", choices=["fp32", "fp16", "bf16"], default=["fp16", "bf16"])
    parser.add_argument("--deadline", type=int, help="seconds for each stage, in place of its own")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.inside:
        from benchmarks.gpu.stages import run_inside

        run_inside(arguments)
        return 0
    links = ROOT / ".links"
    links.mkdir(exist_ok=True)
    if not (links / "vlm_trt").exists():
        (links / "vlm_trt").symlink_to("..")
    for stage in arguments.stages:
        seconds = arguments.deadline or STAGES[stage]
        _forget_failures(arguments.out / f"{stage}.json")
        ended = _apart(stage, list(sys.argv[1:] if words is None else words), arguments, seconds)
        print(f"{stage}: {ended}", file=sys.stderr, flush=True)
    return 0


def _forget_failures(file: Path) -> None:
    """What failed in an earlier run of the stage is tried again: another part of a package may have come."""
    if file.exists():
        steps = [one for one in json.loads(file.read_text())["steps"] if "found" in one]
        file.write_text(json.dumps({"steps": steps}, indent=1) + "\n")


def _apart(stage: str, words: list[str], arguments: argparse.Namespace, seconds: int) -> str:
    """Starts the stage again, behind what ended it, until it is through or its time is over."""
    end, restarts = monotonic() + seconds, 0
    options = [word for word in words if word not in STAGES]
    command = [sys.executable, "-m", "benchmarks.gpu.run", stage, *options, "--inside"]
    while True:
        child = subprocess.Popen(command, cwd=ROOT, env=_environment(arguments), start_new_session=True)
        try:
            code = child.wait(max(1.0, end - monotonic()))
        except subprocess.TimeoutExpired:
            return _overdue(arguments.out / f"{stage}.json", seconds)
        finally:
            with suppress(ProcessLookupError):  # what it started too, such as a builder of engines
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        if code == 0:
            return "done"
        restarts += 1
        if restarts > 5:
            return f"ended with code {code} again and again"


def _overdue(file: Path, seconds: int) -> str:
    """Writes down which step it was that did not end."""
    told = f"no end within the stage's {seconds} s"
    if file.exists():
        content = json.loads(file.read_text())
        for one in content["steps"]:
            if one.pop("running", False):
                one["failed"] = told
        file.write_text(json.dumps(content, indent=1) + "\n")
    return told


def _environment(arguments: argparse.Namespace) -> dict[str, str]:
    """Where what was installed lies: Python's packages, and NVIDIA's libraries, which no linker looks for there."""
    site = arguments.scratch / "site"
    paths = [ROOT / ".links", ROOT]
    libraries: list[Path] = []
    if arguments.device == "cuda":
        paths.insert(0, site)
        folders = [site, *(Path(one) for one in sys.path if one.endswith("-packages"))]
        libraries = [one for folder in folders for one in sorted(folder.glob("nvidia/*/lib"))]
    elif arguments.device == "stand-in":
        paths.insert(0, ROOT / ".cuda-provider" / "onnxruntime-gpu")
        libraries = [arguments.scratch / "stand-ins"]
    known = os.environ.get("LD_LIBRARY_PATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "LD_LIBRARY_PATH": os.pathsep.join([*map(str, libraries), *([known] if known else [])]),
        "PYTHONUNBUFFERED": "1",
    }


if __name__ == "__main__":
    sys.exit(main())
