"""What the host has: free memory, asked before work that the system would otherwise end in the middle, and GPUs."""

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def available_bytes() -> int | None:
    """Memory that is free for a new process, by the kernel and by its container's limits; None where nobody says."""
    free = [_number(MEMINFO, "MemAvailable:") * 1024] if MEMINFO.exists() else []
    return min((*(one for one in free if one), *_left_in_cgroups()), default=None)


def _left_in_cgroups() -> Iterator[int]:
    """What this process' control group and those around it have left (cgroup v2).

    Pages of files that nobody has used lately count as free, as Kubernetes counts them: the kernel takes them first.
    """
    try:
        own = next((line for line in CGROUP.read_text().splitlines() if line.startswith("0::/")), None)
    except OSError:
        return
    if own is None:
        return
    folder = CGROUPS / own.removeprefix("0::/")
    for level in (folder, *folder.parents):
        if not level.is_relative_to(CGROUPS):
            return
        try:
            limit, used = (level / "memory.max").read_text(), (level / "memory.current").read_text()
        except OSError:  # the root has no limit
            continue
        if limit.strip() != "max":
            yield max(0, int(limit) - int(used) + _number(level / "memory.stat", "inactive_file"))


def _number(path: Path, name: str) -> int:
    """The number behind a name in a file of such lines; 0 where it is not there."""
    try:
        lines = (line.split() for line in path.read_text().splitlines())
        return next((int(line[1]) for line in lines if line[0] == name), 0)
    except OSError:
        return 0


def give_back_memory() -> None:
    """Gives the system what was freed and kept for later, which for weights of many sizes is gigabytes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


def query_gpus(*fields: str) -> list[tuple[str, ...]]:
    """Those fields of every NVIDIA GPU, as nvidia-smi names and prints them; empty where it does not answer."""
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [tuple(value.strip() for value in line.split(",")) for line in done.stdout.strip().splitlines()]
