"""Verifies a random checkpoint of the official 9.6 B shape: seconds and peak memory of the whole command.

    python -m benchmarks.verify_full_size /data/scratch > benchmarks/results/verify_full_size.json

Needs about 60 GB free at the path: the checkpoint and the graphs of one precision at a time. The command runs in a
process of its own; reported is the peak of what it holds resident, mapped files included.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks.export_full_size import watched
from benchmarks.make_checkpoint import SIZES, write_checkpoint
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.runtime.environment import environment
from vlm_trt.verification.memory import verification_needs

MOST_BYTES, MOST_SECONDS = 8 << 30, 15 * 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="FULL")
    parser.add_argument("--precision", nargs="*", default=["fp16", "bf16"])
    parser.add_argument("--max-batch", type=int, default=4)
    arguments = parser.parse_args()
    checkpoint = arguments.folder / f"checkpoint-{arguments.size}"
    if not checkpoint.exists():
        print(f"writing {checkpoint} ...", file=sys.stderr, flush=True)
        write_checkpoint(checkpoint, arguments.size)
    runs = [measure(checkpoint, arguments.folder, one, arguments.max_batch) for one in arguments.precision]
    print(json.dumps({"size": arguments.size, "environment": environment(), "runs": runs}, indent=1))


def measure(checkpoint: Path, folder: Path, precision: str, max_batch: int) -> dict[str, object]:
    """One verification, of a bundle that is there from an earlier run or is exported for it."""
    target = folder / f"bundle-{precision}"
    if not target.exists():
        watched("export", checkpoint, target, "--precision", precision, "--max-batch", max_batch)
    seconds, peak_bytes = watched("verify", target, "--precision", precision, "--backend", "cpu")
    manifest = Bundle.open(target).manifest
    verdict = manifest.verification(Precision(precision))
    assert verdict is not None
    needs = verification_needs(family(manifest.model.family), manifest.model, manifest.limits, Precision(precision))
    shutil.rmtree(target)
    return {
        "precision": precision,
        "max_seq_tokens": manifest.limits.max_seq_tokens,
        "max_batch": manifest.limits.max_batch,
        "max_images": manifest.limits.max_images,
        "passed": verdict.passed,
        "figures": verdict.figures,
        "seconds": round(seconds, 1),
        "estimated_seconds": needs.seconds,
        "peak_rss_mib": peak_bytes >> 20,
        "estimated_mib": needs.ram_bytes >> 20,
        "within_aim": bool(seconds <= MOST_SECONDS and peak_bytes <= MOST_BYTES),
    }


if __name__ == "__main__":
    main()
