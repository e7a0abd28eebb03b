"""Loads an engine in a process of its own, before the process that answers does: a damaged one can crash its reader.

    python -m runtime.try_out BACKEND PLAN

Once an engine has loaded on a GPU this is remembered, so that it costs its seconds once.
"""

import hashlib
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from vlm_trt.bundle.digests import cache_folder
from vlm_trt.bundle.errors import IncompatibleError, VlmTrtError

_LIMIT_S = 900
_SAID = 3  # exit code: the last line is a sentence of ours


def try_out(backend: str, version: str, file: Path, sha256: str, gpu: str) -> None:
    """
    Args:
        backend, version: the TensorRT that reads it.
        file, sha256: the engine.
        gpu: name of the GPU.
    Raises:
        IncompatibleError: it does not load, or what reads it crashes.
    """
    mark = _mark(backend, version, sha256, gpu)
    if mark is not None and mark.exists():
        return
    command = [sys.executable, "-m", "vlm_trt.runtime.try_out", backend, str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
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
    raise IncompatibleError(lines[-1] if exit_code == _SAID else f"{file} could not be tried out: {lines[-1]}")


def _mark(backend: str, version: str, sha256: str, gpu: str) -> Path | None:
    root = cache_folder()
    name = hashlib.sha256("\0".join((backend, version, sha256, gpu)).encode()).hexdigest()
    return None if root is None else root / "loaded" / name


def main() -> None:
    import numpy as np

    from vlm_trt.runtime.cuda import CudaGpu
    from vlm_trt.runtime.plan import TensorRt

    backend, file = sys.argv[1:]
    try:
        plans = TensorRt(backend)
        CudaGpu()
        plans.load(np.memmap(file, np.uint8, "r").data, file, "")
    except VlmTrtError as error:
        print(error, file=sys.stderr)
        sys.exit(_SAID)


if __name__ == "__main__":
    main()
