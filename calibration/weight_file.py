"""One file that holds a graph's tensors, written one after the other, hashed on the way."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.alignment import aligned

_WRITTEN_AT_ONCE = 16 << 20


class WeightFile:
    """Appends tensors; `sha256` is that of the file when it is closed."""

    def __init__(self, path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> None:
        self._path, self._on_bytes = path, on_bytes
        self._file, self._digest = path.open("xb"), hashlib.sha256()

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def append(self, name: str, values: NDArray[Any], dtype: ir.DataType) -> ir.ExternalTensor:
        """Writes a tensor, and refers to it.

        Args:
            name: of the initializer.
            values: of the type that numpy has for it; INT4 as int8 with values −8…7.
            dtype: what the graph takes it as.
        """
        data = np.ascontiguousarray(packed(values) if dtype is ir.DataType.INT4 else values).reshape(-1)
        offset = aligned(self._file.tell(), data.nbytes)
        self._put(bytes(offset - self._file.tell()))
        view = data.view(np.uint8)
        for start in range(0, view.size, _WRITTEN_AT_ONCE):
            part = view[start : start + _WRITTEN_AT_ONCE]
            self._put(part)
            self._on_bytes(part.size)
        return ir.ExternalTensor(self._path.name, offset, data.nbytes, dtype, shape=ir.Shape(values.shape), name=name)

    def _put(self, data: Any) -> None:
        self._digest.update(data)
        self._file.write(data)


def packed(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """4-bit integers two to a byte, the first in the low half.

    Source: ONNX, "4-bit types", https://onnx.ai/onnx/technical/int4.html.
    """
    flat = values.reshape(-1).view(np.uint8)
    halves = np.append(flat, np.zeros(flat.size % 2, np.uint8)) & np.uint8(0xF)
    return np.asarray(halves[0::2] | (halves[1::2] << np.uint8(4)), dtype=np.uint8)
