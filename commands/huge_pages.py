"""Pages of 2 MiB for the memory that graphs are packed into, which a step reads from end to end.

ONNX Runtime takes that memory from the C library, and glibc asks the kernel for large pages only where the environment
of its process said so at the start (`glibc.malloc.hugetlb`). Where the kernel gives them to all, or to nobody, there is
nothing to ask for. Few imports: all of it is done before anything else is.
"""

import os
import sys
from collections.abc import Sequence

# Those that answer; what they need of a start is short beside an answer.
COMMANDS = frozenset({"chat", "detect", "evaluate", "generate", "point", "profile", "serve"})
_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SINCE = (2, 35)  # glibc
_KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"


def begin_again(words: Sequence[str]) -> None:
    """Starts this program anew, in this process, with large pages asked for; returns where that is not worth it.

    Args:
        words: of the command line, behind the program's name.
    """
    if words and words[0] in COMMANDS and to_be_asked_for(os.environ.get(_VARIABLE, ""), _glibc(), _KERNEL):
        tunables = [one for one in (os.environ.get(_VARIABLE), f"{_TUNABLE}=1") if one]
        environment = {**os.environ, _VARIABLE: ":".join(tunables)}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def to_be_asked_for(tunables: str, glibc: tuple[int, ...], kernel: str) -> bool:
    """Whether asking changes anything, and nobody has said yes or no already."""
    try:
        with open(kernel) as file:  # noqa: PTH123  # pathlib takes longer to import than all the rest
            given = file.read()
    except OSError:  # no Linux, or one without large pages
        return False
    return "[madvise]" in given and glibc >= _SINCE and _TUNABLE not in tunables


def _glibc() -> tuple[int, ...]:
    """Its version; (0,) for another C library."""
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, OSError, ValueError):
        return (0,)
    numbers = name.removeprefix("glibc ").split(".")
    return tuple(int(one) for one in numbers) if all(one.isdigit() for one in numbers) else (0,)
