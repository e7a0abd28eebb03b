"""Exports a random checkpoint of the official 9.6 B shape: seconds, bytes, peak memory, ratio to a plain copy.

    python -m benchmarks.export_full_size /data/scratch [--size FULL] > benchmarks/results/export_full_size.json

Needs about 60 GB free at the path. Each export runs in a process of its own, whose peak resident memory is reported;
the plain copy of the same bytes (read, write, fsync) runs before each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from benchmarks.make_checkpoint import SIZES, write_checkpoint
from runtime.environment import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="FULL")
    parser.add_argument("--precision", nargs="*", default=["bf16", "fp16"])
    arguments = parser.parse_args()
    checkpoint = arguments.folder / f"checkpoint-{arguments.size}"
    if not checkpoint.exists():
        print(f"writing {checkpoint} ...", file=sys.stderr, flush=True)
        write_checkpoint(checkpoint, arguments.size)
    runs = [measure(checkpoint, arguments.folder, precision) for precision in arguments.precision]
    print(json.dumps({"size": arguments.size, "environment": environment(), "runs": runs}, indent=1))


def measure(checkpoint: Path, folder: Path, precision: str) -> dict[str, object]:
    """One plain copy and one export."""
    copy_seconds, copied = plain_copy(checkpoint, folder / "copy")
    target = folder / f"bundle-{precision}"
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "cli", "export", str(checkpoint), str(target), "--precision", precision]
    started = perf_counter()
    process = subprocess.Popen(command, stdout=sys.stderr)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - started
    assert status == 0, f"the export ended with {status}"
    written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target)
    return {
        "precision": precision,
        "export_seconds": round(seconds, 1),
        "export_bytes": written,
        "peak_rss_mib": usage.ru_maxrss // 1024,
        "copy_seconds": round(copy_seconds, 1),
        "copy_bytes": copied,
        "ratio_to_copy": round(seconds / copy_seconds, 2),
        "within_aim": bool(seconds <= 2 * copy_seconds + 30 and usage.ru_maxrss < 2 << 20),
    }


def plain_copy(source: Path, target: Path) -> tuple[float, int]:
    """Seconds and bytes of copying every file of a folder to disk."""
    target.mkdir()
    started = perf_counter()
    copied = 0
    for path in sorted(source.iterdir()):
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            while block := reader.read(16 << 20):
                copied += writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
    seconds = perf_counter() - started
    shutil.rmtree(target)
    return seconds, copied


if __name__ == "__main__":
    main()
