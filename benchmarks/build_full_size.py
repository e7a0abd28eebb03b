"""Engines of the official 9.6 B shape, each by itself: seconds, peak memory, bytes, or the sentence that refuses it.

    python -m benchmarks.build_full_size /data/scratch > benchmarks/results/build_full_size.json

Random weights; TensorRT-RTX, which needs no GPU. Needs about 65 GB free at the path. Peak memory is the builder's,
without the mapped weights.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.export_full_size import watched
from benchmarks.make_checkpoint import SIZES, write_checkpoint
from bundle.host import available_bytes
from bundle.signature import Component, Precision
from bundle.store import Bundle
from engines.plan import build_ram_bytes
from runtime.environment import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="FULL")
    parser.add_argument("--precision", nargs="*", default=["fp16", "bf16"])
    parser.add_argument("--component", nargs="*", default=list(Component))
    parser.add_argument("--target", default="sm89")
    arguments = parser.parse_args()
    checkpoint = arguments.folder / f"checkpoint-{arguments.size}"
    if not checkpoint.exists():
        print(f"writing {checkpoint} ...", file=sys.stderr, flush=True)
        write_checkpoint(checkpoint, arguments.size)
    runs = []
    for precision in arguments.precision:
        bundle = arguments.folder / f"bundle-{arguments.size}-{precision}"
        shutil.rmtree(bundle, ignore_errors=True)
        parts = [word for component in arguments.component for word in ("--component", component)]
        watched("export", checkpoint, bundle, "--precision", precision, *parts)
        runs += [measure(bundle, Component(one), Precision(precision), arguments.target) for one in arguments.component]
        shutil.rmtree(bundle)
    found = {"size": arguments.size, "target": arguments.target, "environment": environment(), "runs": runs}
    print(json.dumps(found, indent=1))


def measure(bundle: Path, component: Component, precision: Precision, target: str) -> dict[str, Any]:
    """One engine, or why there is none."""
    weights = Bundle.open(bundle).graph(component, precision).weights.size
    found: dict[str, Any] = {
        "precision": precision, "component": component, "weight_bytes": weights,
        "planned_ram_bytes": build_ram_bytes(weights, precision), "free_ram_bytes": available_bytes(),
    }  # fmt: skip
    command = ("build", bundle, "--backend", "tensorrt-rtx", "--target", target)
    options = ("--precision", precision, "--component", component)
    done = subprocess.run(
        [sys.executable, "-m", "cli", *map(str, (*command, *options))], stderr=subprocess.PIPE, text=True, check=False
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        return found | {"exit_code": done.returncode, "refused": done.stderr.strip().splitlines()[-1]}
    (entry,) = (one for one in Bundle.open(bundle).manifest.engines if one.component is component)
    return found | {
        "seconds": round(entry.seconds, 1), "peak_ram_bytes": entry.peak_ram_bytes, "engine_bytes": entry.plan.size,
        "copies_of_the_weights": round(entry.peak_ram_bytes / weights, 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
