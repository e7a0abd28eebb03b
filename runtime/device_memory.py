"""Memory of a GPU backend: buffers on the device, arrays in pinned host memory, and the way between them."""

import ctypes
import weakref
from collections.abc import Sequence
from contextlib import suppress
from math import prod

import numpy as np

from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.precision import DTYPE_BYTES
from vlm_trt.runtime.backend import NUMPY_DTYPES, Array, Binding
from vlm_trt.runtime.gpu import Gpu


class DeviceMemory:
    """Allocates for one GPU, and copies on a stream of its own."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._stream = gpu.open_stream()
        self._pinned: dict[int, int] = {}  # address → bytes
        self._blocks = Blocks(gpu)

    def buffer(self, shape: tuple[int, ...], dtype: str) -> "DeviceBuffer":
        """Zeroed device memory.

        Raises:
            ResourceError: the GPU has too little.
        """
        size = max(1, prod(shape) * DTYPE_BYTES[dtype])
        address, reused = self._blocks.take(size)
        if reused:
            self.clear(address, size)
        buffer = DeviceBuffer(self, address, shape, dtype)
        weakref.finalize(buffer, self._blocks.give, size, address)
        return buffer

    def upload(self, array: Array, dtype: str) -> "DeviceBuffer":
        """Host values on the device."""
        buffer = self.buffer(array.shape, dtype)
        staged = self.pinned(array.shape, dtype)
        staged[...] = array
        self._copy(buffer.address, staged.ctypes.data, staged.nbytes)
        return buffer

    def download(self, address: int, shape: tuple[int, ...], dtype: str) -> Array:
        """Values of device memory on the host."""
        staged = self.pinned(shape, dtype)
        self._copy(staged.ctypes.data, address, staged.nbytes)
        return staged

    def gather(self, parts: Sequence[Binding]) -> "DeviceBuffer":
        """Rows of several buffers one after the other in one; all on the device."""
        rows = sum(part.shape[0] for part in parts)
        joined = self.buffer((rows, *parts[0].shape[1:]), parts[0].dtype)
        at = joined.address
        for part in parts:
            self.gpu.copy(at, part.address, part.size_bytes, self._stream)
            at += part.size_bytes
        self.gpu.synchronize(self._stream)
        return joined

    def copy_rows(self, target: int, source: int, size_bytes: int, rows: int, pitch_bytes: int) -> None:
        """So many bytes of each of several rows, which lie `pitch_bytes` apart."""
        self.gpu.copy_rows(target, source, size_bytes, rows, pitch_bytes, self._stream)
        self.gpu.synchronize(self._stream)

    def clear(self, address: int, size_bytes: int) -> None:
        self.gpu.clear(address, size_bytes, self._stream)
        self.gpu.synchronize(self._stream)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A zeroed host array that copies run from and to without the driver's help; freed with its last view."""
        size = prod(shape) * DTYPE_BYTES[dtype]
        if size == 0:
            return np.zeros(shape, NUMPY_DTYPES[dtype])
        address = self.gpu.allocate_pinned(size)
        memory = (ctypes.c_uint8 * size).from_address(address)
        self._pinned[address] = size
        weakref.finalize(memory, self._free_pinned, address)
        return np.ctypeslib.as_array(memory).view(NUMPY_DTYPES[dtype]).reshape(shape)

    def pinned_room(self, binding: Binding) -> int:
        """Bytes from a host binding to the end of the pinned memory of ours that it lies in; 0 where in none."""
        # A copy is made in one go, while the picture thread takes and frees memory. A lock could not be held: memory is
        # freed by the garbage collector too, at any moment, in any thread.
        ends = (start + size for start, size in self._pinned.copy().items() if start <= binding.address)
        return max((end - binding.address for end in ends if binding.address < end), default=0)

    def _copy(self, target: int, source: int, size_bytes: int) -> None:
        if size_bytes:
            self.gpu.copy(target, source, size_bytes, self._stream)
            self.gpu.synchronize(self._stream)

    def _free_pinned(self, address: int) -> None:
        del self._pinned[address]
        self.gpu.free_pinned(address)


class Blocks:
    """Device memory that was given back is kept for the next buffer of its size: cudaMalloc and cudaFree wait for the
    device, and every picture brings two buffers.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._kept: dict[int, list[int]] = {}  # bytes → addresses
        weakref.finalize(self, _free, gpu, self._kept)

    def take(self, size_bytes: int) -> tuple[int, bool]:
        """An address, and whether something was there before; else it is zeroed.

        Raises:
            ResourceError: the GPU has too little, also without what is kept.
        """
        with suppress(KeyError, IndexError):
            return self._kept[size_bytes].pop(), True
        try:
            return self._gpu.allocate(size_bytes), False
        except ResourceError:
            _free(self._gpu, self._kept)
            return self._gpu.allocate(size_bytes), False

    def give(self, size_bytes: int, address: int) -> None:
        """Nothing uses it any more: every run has ended when it returns. Called at any moment, in any thread, by the
        garbage collector, so that no lock can be held; each of the two calls is one of the interpreter's.
        """
        self._kept.setdefault(size_bytes, []).append(address)


def _free(gpu: Gpu, kept: dict[int, list[int]]) -> None:
    for addresses in list(kept.values()):
        while addresses:
            gpu.free(addresses.pop())


class DeviceBuffer:
    """Device memory; given back with the object."""

    def __init__(self, memory: DeviceMemory, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self.address, self.shape, self.dtype, self._memory = address, shape, dtype, memory
        self._row_bytes = prod(shape[1:]) * DTYPE_BYTES[dtype]

    def rows(self, first: int, count: int) -> Binding:
        assert first >= 0 and first + count <= self.shape[0]
        return Binding(self.address + first * self._row_bytes, (count, *self.shape[1:]), self.dtype, on_host=False)

    def read(self) -> Array:
        return self._memory.download(self.address, self.shape, self.dtype)

    def zero_row(self, row: int) -> None:
        self._memory.clear(self.address + row * self._row_bytes, self._row_bytes)

    def copy_row(self, row: int, source: "DeviceBuffer", source_row: int, length: int) -> None:
        *outer, positions, _ = self.shape[1:]
        pitch = self._row_bytes // prod(outer)
        target, origin = self.address + row * self._row_bytes, source.address + source_row * self._row_bytes
        if length:
            self._memory.copy_rows(target, origin, pitch // positions * length, prod(outer), pitch)
