"""What the generation loop needs of a backend: memory with addresses, and sessions that run on bound memory.

ONNX Runtime implements it on the CPU and on CUDA (`runtime/ort.py`), TensorRT on a GPU (`runtime/trt.py`). Nothing
here copies: a tensor is bound as an address, so that a cache slot is a pointer and `present` is the memory of `past`.
"""

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.entries import EngineEntry, GraphEntry, PackedEntry
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision
from vlm_trt.bundle.store import Bundle

Array = NDArray[Any]

# numpy has no bfloat16: its words travel as uint16 and are never computed with here.
NUMPY_DTYPES: dict[str, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
    "int64": np.int64,
    "int8": np.int8,
}


# Windows grow in these steps, or double from here on.
WINDOW_STEP = 32


class StepShapes(StrEnum):
    """Which shapes decode steps have: fewer different ones repeat more, larger ones cost more."""

    # The window grows in steps, so that shapes repeat; the copy of the last few positions costs nothing.
    CLOSE = "close"
    # Window and rows double: what is captured for a shape stays in memory.
    FEW = "few"
    # Attention reads the whole cache in place.
    WHOLE_WINDOW = "whole window"

    def window(self, needed: int, longest: int) -> int:
        """How many positions a step looks at."""
        match self:
            case StepShapes.CLOSE:
                return rounded_window(needed, longest)
            case StepShapes.FEW:
                return min(WINDOW_STEP << (-(-needed // WINDOW_STEP) - 1).bit_length(), longest)
            case StepShapes.WHOLE_WINDOW:
                return longest

    def rows(self, first: int, count: int, most: int) -> tuple[int, int]:
        """The first of the rows of the cache that a step is given, and how many, where some of them have to be."""
        if self is not StepShapes.FEW:
            return first, count
        return 0, min(1 << (first + count - 1).bit_length(), most)


def rounded_window(needed: int, longest: int) -> int:
    """At least `needed` positions, in steps: a multiple of eight is what fused attention kernels take."""
    return min(-(-needed // WINDOW_STEP) * WINDOW_STEP, longest)


@dataclass(frozen=True)
class Binding:
    """Memory a tensor is bound to: `shape` elements of `dtype` at an `address` of the host or of the device."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    on_host: bool

    @property
    def size_bytes(self) -> int:
        return prod(self.shape) * DTYPE_BYTES[self.dtype]


def bind_host(array: Array, dtype: str) -> Binding:
    """The binding of a host array, which must outlive every run that uses it."""
    assert array.flags.c_contiguous and array.dtype == NUMPY_DTYPES[dtype], f"{array.dtype} is not {dtype}"
    return Binding(array.ctypes.data, array.shape, dtype, on_host=True)


def contiguous(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Host arrays of int64 or fp32 as they are bound, those that lie apart copied; to be kept until the run ends."""
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def bind_all(arrays: Mapping[str, Array]) -> dict[str, Binding]:
    """The bindings of `contiguous` arrays."""
    return {name: bind_host(one, "int64" if one.dtype == np.int64 else "float32") for name, one in arrays.items()}


def flat(features: Binding) -> Binding:
    """[images, tokens, hidden], or rows already, as the decoder takes them: [rows, hidden]."""
    return replace(features, shape=(prod(features.shape[:-1]), features.shape[-1]))


def host_view(binding: Binding) -> Array:
    """The host memory behind a binding, as an array that does not keep it alive."""
    assert binding.on_host
    memory = (ctypes.c_uint8 * binding.size_bytes).from_address(binding.address)
    return np.ctypeslib.as_array(memory).view(NUMPY_DTYPES[binding.dtype]).reshape(binding.shape)


def to_float32(values: Array, dtype: str) -> NDArray[np.float32]:
    """Host values of any of our types as fp32."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def from_float32(values: NDArray[np.float32], dtype: str) -> Array:
    """fp32 values rounded to one of our types; to nearest even for bfloat16, of which the words are returned."""
    if dtype != "bfloat16":
        return values.astype(NUMPY_DTYPES[dtype])
    words = np.ascontiguousarray(values).view(np.uint32)
    return ((words + 0x7FFF + ((words >> 16) & 1)) >> 16).astype(np.uint16)


class Buffer(Protocol):
    """Memory where the backend computes, zeroed when allocated; freed with the object."""

    shape: tuple[int, ...]
    dtype: str

    def rows(self, first: int, count: int) -> Binding:
        """The binding of rows first…first+count−1 of the leading axis: a pointer offset, never a copy."""

    def read(self) -> Array:
        """The values on the host; on the CPU the memory itself."""

    def zero_row(self, row: int) -> None:
        """Clears one row: after a non-finite value, since 0·NaN under a mask is still NaN."""

    def copy_row(self, row: int, source: Any, source_row: int, length: int) -> None:
        """The first `length` of the last axis but one, from a row of a buffer of the same backend and row shape."""


class Session(Protocol):
    """A loaded graph or engine."""

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
        """Runs on the bound memory.

        Args:
            inputs, outputs: every tensor of the graph, by name.
            repeats: the run will come again with the same shapes and addresses, so that capturing it pays.
        Raises:
            ResourceError: not enough memory.
            VlmTrtError: the graph refuses an input; the message names it.
        """


class Backend(Protocol):
    """Where graphs run."""

    name: str
    precisions: tuple[Precision, ...]  # what it can run, the preferred first
    steps: StepShapes  # of decoding
    overlaps: bool  # whether pictures can be encoded beside decode steps, in another thread, at little cost
    loads_beside: int  # graphs that are loaded at once, a thread for each
    fewest_scored: int  # positions of which any run of the decoder computes logits: 0 where it can do without

    def engines(self, bundle: Bundle, precision: Precision) -> tuple[EngineEntry, ...]:
        """The engines of the bundle that it would run, one per component; none where it runs the graphs themselves.

        Raises:
            IncompatibleError: it runs engines, and none fits.
        """

    def packed(self, bundle: Bundle, graph: GraphEntry) -> PackedEntry | None:
        """The form of a graph that was made for this machine; None where it runs the graph itself."""

    def allocate(self, shape: tuple[int, ...], dtype: str) -> Buffer:
        """Zeroed memory where the backend computes."""

    def require_room(self, model: ModelConfig, patches: int, images: int) -> None:
        """
        Raises:
            ResourceError: there is less memory than the tower takes for images of so many patches, where it is the
                host's: the system would end the process in the middle.
        """

    def upload(self, array: Array, dtype: str) -> Buffer:
        """Host values where the backend computes; on the CPU the array itself, without a copy."""

    def gather(self, parts: Sequence[Binding]) -> Buffer:
        """Rows of several of its buffers, one after the other in one."""

    def read(self, binding: Binding) -> Array:
        """The values of bound memory on the host; on the CPU the memory itself."""

    def host(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A zeroed host array that runs read and write at the least cost."""

    def open(self, file: Path, engine: EngineEntry | None = None) -> Session:
        """Loads one graph, or the engine of that entry."""
