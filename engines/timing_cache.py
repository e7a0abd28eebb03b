"""The builder's timings of kernels, kept across builds in one file: a second build of the same shapes takes seconds.

TensorRT-RTX compiles on the GPU that runs the engine and times nothing while building: it gets no cache.
"""

import os
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.output import require_output, write_output
from vlm_trt.bundle.reading import LARGE_BYTES, read_bytes
from vlm_trt.bundle.staging import storage_errors


class TimingCache:
    """The cache of one build: what a file holds goes in, what the builder learnt goes back."""

    def __init__(self, config: Any, path: Path | None) -> None:
        self._config, self._path = config, path

    def load(self) -> None:
        """Gives the builder the stored timings; those of another version or GPU it refuses, and starts anew."""
        if self._path is None:
            return
        stored = b""
        try:
            stored = read_bytes(self._path, LARGE_BYTES)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(
                f"the timing cache {self._path} cannot be read ({error.strerror}); choose another file with "
                "--timing-cache"
            ) from None
        cache = self._config.create_timing_cache(stored)
        if cache is None or not self._config.set_timing_cache(cache, False):
            self._config.set_timing_cache(self._config.create_timing_cache(b""), False)

    def store(self) -> None:
        """Writes the timings, whole or not at all: another build may be reading the file."""
        if self._path is None:
            return
        write_output(self._path, bytes(self._config.get_timing_cache().serialize()))


def default_path(backend: str, version: str, target: str) -> Path | None:
    """Where the timings of this backend, version and GPU lie by default; None for a user without a home."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return root / "vlm-trt" / f"timings-{backend}-{version}-{target}"


def require_writable(path: Path) -> None:
    """
    Raises:
        StorageError: the timings could not be stored there after the build.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # it is read before it is written
        raise StorageError(f"the timing cache {path} is no file; choose another with --timing-cache")
    require_output(path)
