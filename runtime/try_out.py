"""Loads an engine in a process of its own, before the process that answers does: a damaged one can crash its reader.

Once an engine has loaded on a GPU this is remembered, so that it costs its seconds once.
"""

import hashlib
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from vlm_trt.bundle.digests import cache_folder
from vlm_trt.bundle.errors import IncompatibleError

_LIMIT_S = 900
SAID = 3  # exit code of a loader whose last line is a sentence of ours


def try_out(loader: Sequence[str], file: Path, known_by: Sequence[str]) -> None:
    """
    Args:
        loader: the command that loads the engine and ends.
        file: the engine.
        known_by: what has to be the same for a success to count again: TensorRT and its version, sha256, GPU.
    Raises:
        IncompatibleError: it does not load, or what reads it crashes.
    """
    mark = _mark(known_by)
    if mark is not None and mark.exists():
        return
    try:
        done = subprocess.run(loader, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise IncompatibleError(
            f"{file} did not load within {_LIMIT_S} s; build it again with: vlm-trt build"
        ) from None
    require_loaded(file, done.returncode, done.stderr)
    if mark is not None:
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()


def require_loaded(file: Path, exit_code: int, said: str) -> None:
    """
    Raises:
        IncompatibleError: the process that tried the engine did not end well.
    """
    if exit_code == 0:
        return
    if exit_code < 0:
        raise IncompatibleError(
            f"{file} crashes what reads it ({signal.Signals(-exit_code).name}), so it is damaged or built for "
            "something else; build it again with: vlm-trt build"
        )
    lines = said.strip().splitlines() or ["no reason given"]
    raise IncompatibleError(lines[-1] if exit_code == SAID else f"{file} could not be tried out: {lines[-1]}")


def _mark(known_by: Sequence[str]) -> Path | None:
    root = cache_folder()
    name = hashlib.sha256("\0".join(known_by).encode()).hexdigest()
    return None if root is None else root / "loaded" / name
