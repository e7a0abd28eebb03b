"""What a figure was measured on."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vlm_trt.bundle.host import query_gpus

_PACKAGES = (
    "vlm-trt", "numpy", "torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx",
    "cuda-bindings",
)  # fmt: skip


def environment() -> dict[str, object]:
    """Processor, GPU, cores, memory, load and versions."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "clock_mhz": _clock_mhz(),
        "gpu": gpu(),
        "gpu_clock": "; ".join(one[0] for one in query_gpus("clocks.sm")) or None,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def gpu() -> str | None:
    """Name, memory and driver of every NVIDIA GPU; None where nvidia-smi does not answer."""
    return "; ".join(", ".join(one) for one in query_gpus("name", "memory.total", "driver_version")) or None


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _clock_mhz() -> float | None:
    """Of the cores together, as the kernel sees it now; None where it does not say."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
