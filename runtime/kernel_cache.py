"""TensorRT-RTX compiles kernels for the GPU it finds: what it compiled is kept, so that the next start is quick."""

import atexit
from contextlib import suppress
from typing import Any

from vlm_trt.bundle.digests import cache_folder
from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.reading import LARGE_BYTES, read_bytes
from vlm_trt.bundle.staging import replace_file


class KernelCache:
    """The compiled kernels of one engine, read when it is opened and written when the process ends."""

    def __init__(self, held: Any, sha256: str) -> None:
        """
        Args:
            held: TensorRT-RTX's runtime cache, still empty; it refuses what another GPU, driver or version left.
            sha256: of the engine.
        """
        root = cache_folder()
        self._held, self._file = held, None if root is None else root / "kernels" / f"{sha256}.bin"
        self._known = b""
        if self._file is not None:
            with suppress(OSError):  # there is none yet, or it cannot be read: the kernels are compiled again
                self._known = read_bytes(self._file, LARGE_BYTES)
                held.deserialize(self._known)
            atexit.register(self.save)

    def save(self) -> None:
        """Writes the kernels, all or nothing, if any came to those that were read."""
        kernels = bytes(self._held.serialize())
        if self._file is None or kernels == self._known:
            return
        with suppress(OSError, StorageError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, kernels)
            self._known = kernels
