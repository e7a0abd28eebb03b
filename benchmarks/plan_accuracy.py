"""What `vlm-trt plan` says, beside what export and build then take: seconds, memory, disk.

    python -m benchmarks.plan_accuracy /data/scratch [--size XS4 S] > benchmarks/results/plan_accuracy.json

Engines are built with TensorRT-RTX for one GPU, without one. FULL needs about 60 GB of disk.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks.export_full_size import watched
from benchmarks.make_checkpoint import SIZES, write_checkpoint
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.weight_sizes import weight_bytes
from vlm_trt.engines.plan import Stage, plan
from vlm_trt.runtime.environment import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, nargs="*", default=["XS4", "S"])
    parser.add_argument("--precision", nargs="*", default=["fp16", "bf16"])
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--component", nargs="*", default=[*PIPELINE, Component.SAMPLER], help="the engines to build")
    arguments = parser.parse_args()
    runs = []
    for size in arguments.size:
        checkpoint = arguments.folder / f"checkpoint-{size}"
        if not checkpoint.exists():
            print(f"writing {checkpoint} ...", file=sys.stderr, flush=True)
            write_checkpoint(checkpoint, size)
        for precision in arguments.precision:
            bundle = arguments.folder / f"bundle-{size}"
            shutil.rmtree(bundle, ignore_errors=True)
            runs.append({"size": size, "precision": precision, **measure(checkpoint, bundle, precision, arguments)})
            shutil.rmtree(bundle)
    print(json.dumps({"target": arguments.target, "environment": environment(), "runs": runs}, indent=1))


def measure(
    checkpoint: Path, bundle: Path, precision: str, arguments: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Each figure as it was estimated and as it was measured."""
    export_seconds, export_ram = watched("export", checkpoint, bundle, "--precision", precision)
    components = [word for component in arguments.component for word in ("--component", component)]
    build = ("build", bundle, "--backend", "tensorrt-rtx", "--target", arguments.target, "--precision", precision)
    build_seconds, _ = watched(*build, *components)
    manifest = Bundle.open(bundle).manifest
    weights = weight_bytes(manifest.model, Precision(precision))
    built = {entry.component: entry for entry in manifest.engines}
    said = plan(manifest.model, manifest.limits, Precision(precision), weights)
    export, build_of = said.needs[Stage.EXPORT], said.needs[Stage.BUILD]
    measured = {
        "weights": (sum(weights.values()), sum(entry.weight_bytes for entry in manifest.graphs)),
        "export_seconds": (export.seconds or 0.0, export_seconds),
        "export_ram": (export.ram_bytes, export_ram),
        "build_seconds": (build_of.seconds or 0.0, build_seconds),
        "build_ram": (build_of.ram_bytes, max(entry.peak_ram_bytes for entry in built.values())),
        "engines": (build_of.disk_bytes, sum(entry.plan.size for entry in built.values())),
    }
    found: dict[str, dict[str, object]] = {
        name: {"estimated": round(said, 1), "measured": round(true, 1), "ratio": round(said / true, 2)}
        for name, (said, true) in measured.items()
    }
    found["engines_built"] = {
        one.value: {
            "weights": weights[one], "bytes": entry.plan.size, "seconds": round(entry.seconds, 1),
            "peak_ram_bytes": entry.peak_ram_bytes, "copies": round(entry.peak_ram_bytes / weights[one], 2),
        }
        for one, entry in built.items()
    }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
