"""One file that holds a graph's tensors one after the other: written and hashed on the way, or compared."""

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.alignment import aligned

_AT_ONCE = 16 << 20


class Weights:
    """Places tensors one after the other; what becomes of their bytes is the subclass's affair."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._path, self._on_bytes = path, on_bytes
        self._end = 0  # bytes placed

    def append(self, name: str, values: NDArray[Any], dtype: ir.DataType) -> ir.ExternalTensor:
        """Places a tensor, and refers to it.

        Args:
            name: of the initializer.
            values: of the type that numpy has for it; INT4 as int8 with values −8…7.
            dtype: what the graph takes it as.
        """
        data = np.ascontiguousarray(packed(values) if dtype is ir.DataType.INT4 else values).reshape(-1)
        offset = aligned(self._end, data.nbytes)
        self._put("", np.zeros(offset - self._end, np.uint8))
        view = data.view(np.uint8)
        for start in range(0, view.size, _AT_ONCE):
            part = view[start : start + _AT_ONCE]
            self._put(name, part)
            self._on_bytes(part.size)
        self._end = offset + data.nbytes
        return ir.ExternalTensor(self._path.name, offset, data.nbytes, dtype, shape=ir.Shape(values.shape), name=name)

    def _put(self, name: str, data: Any) -> None:
        """The next bytes, an array of them; without a name those between two tensors."""
        raise NotImplementedError


class WeightFile(Weights):
    """A new file; `sha256` is that of the file when it is closed."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(path, on_bytes)
        self._file, self._digest = path.open("xb"), hashlib.sha256()

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def _put(self, name: str, data: Any) -> None:
        self._digest.update(data)
        self._file.write(data)


class ComparedWeights(Weights):
    """A file that should hold these tensors; `differing` says, by name, how many bytes of one are others."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        super().__init__(path, on_bytes)
        self._file = path.open("rb")
        self.differing: Counter[str] = Counter()

    def __enter__(self) -> "ComparedWeights":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if (behind := self._path.stat().st_size - self._end) > 0:
            self.differing[""] += behind

    def _put(self, name: str, data: Any) -> None:
        found = np.frombuffer(self._file.read(data.size), np.uint8)
        if not np.array_equal(found, data):
            same = int((found == data[: found.size]).sum())
            self.differing[name] += data.size - same


def packed(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """4-bit integers two to a byte, the first in the low half.

    Source: ONNX, "4-bit types", https://onnx.ai/onnx/technical/int4.html.
    """
    flat = values.reshape(-1).view(np.uint8)
    halves = np.append(flat, np.zeros(flat.size % 2, np.uint8)) & np.uint8(0xF)
    return np.asarray(halves[0::2] | (halves[1::2] << np.uint8(4)), dtype=np.uint8)
