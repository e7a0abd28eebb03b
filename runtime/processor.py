"""The CPU's instructions, by which ONNX Runtime chooses its kernels."""

import platform
import re
from functools import cache
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = re.compile(r"avx\w*|amx\w*|fma|f16c|asimd\w*|sve\w*|i8mm|bf16")

_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@cache
def processor() -> str:
    """Machine and instructions, such as "x86_64 avx avx2 f16c fma"."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join([platform.machine(), *sorted(flag for flag in flags if _INSTRUCTIONS.fullmatch(flag))])


def has_vnni() -> bool:
    """Whether products of unsigned by signed 8-bit integers are added up in 32 bits by one instruction."""
    return not _VNNI.isdisjoint(processor().split())
