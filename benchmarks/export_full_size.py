"""Exports a random checkpoint of the official 9.6 B shape: seconds, bytes, peak memory, ratio to a plain copy.

    python -m benchmarks.export_full_size /data/scratch [--size FULL] > benchmarks/results/export_full_size.json

Needs about 60 GB free at the path. Each export runs in a process of its own; reported is the peak of what it and the
process it traces in hold resident. The plain copy of the same bytes (read, write, fsync) runs before each.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep

from benchmarks.make_checkpoint import SIZES, write_checkpoint
from vlm_trt.runtime.environment import environment


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
    seconds, peak_bytes = watched("export", checkpoint, target, "--precision", precision)
    written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    shutil.rmtree(target)
    return {
        "precision": precision,
        "export_seconds": round(seconds, 1),
        "export_bytes": written,
        "peak_rss_mib": peak_bytes >> 20,
        "copy_seconds": round(copy_seconds, 1),
        "copy_bytes": copied,
        "ratio_to_copy": round(seconds / copy_seconds, 2),
        "within_aim": bool(seconds <= 2 * copy_seconds + 30 and peak_bytes < 2 << 30),
    }


def watched(*arguments: object) -> tuple[float, int]:
    """Seconds that a command of vlm-trt takes, and the peak of what it and its processes hold resident."""
    started = perf_counter()
    command = [sys.executable, "-m", "vlm_trt.cli", *(str(argument) for argument in arguments)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    peak_bytes = 0
    while process.poll() is None:
        peak_bytes = max(peak_bytes, resident_bytes(process.pid))
        sleep(0.1)
    assert process.returncode == 0, f"{arguments[0]} ended with {process.returncode}"
    return perf_counter() - started, peak_bytes


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and of all below it; memory that two of them share counts twice."""
    total = 0
    for member in family_of(pid):
        with suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")


def family_of(pid: int) -> set[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


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
