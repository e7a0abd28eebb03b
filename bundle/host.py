"""What the host has: free memory, asked before work that the system would otherwise end in the middle, and GPUs."""

import ctypes
import subprocess
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available_bytes() -> int | None:
    """Memory that the kernel says is free for a new process; None where it does not say."""
    if not MEMINFO.exists():
        return None
    lines = (line.split() for line in MEMINFO.read_text().splitlines())
    return next((int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"), None)


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
