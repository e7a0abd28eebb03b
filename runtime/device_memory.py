"""Memory of a GPU backend: buffers on the device, arrays in pinned host memory, and the way between them."""

import ctypes
import weakref
from collections.abc import Sequence
from math import prod

import numpy as np

from vlm_trt.bundle.signature import DTYPE_BYTES
from vlm_trt.runtime.backend import NUMPY_DTYPES, Array, Binding
from vlm_trt.runtime.gpu import Gpu


class DeviceMemory:
    """Allocates for one GPU, and copies on a stream of its own."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._stream = gpu.open_stream()
        self._pinned: dict[int, int] = {}  # address → bytes

    def buffer(self, shape: tuple[int, ...], dtype: str) -> "DeviceBuffer":
        """Zeroed device memory."""
        return DeviceBuffer(self, shape, dtype)

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

    def is_pinned(self, binding: Binding) -> bool:
        """Whether a host binding lies in pinned memory of ours."""
        # A copy is made in one go, while the picture thread takes and frees memory. A lock could not be held: memory is
        # freed by the garbage collector too, at any moment, in any thread.
        return any(start <= binding.address < start + size for start, size in self._pinned.copy().items())

    def _copy(self, target: int, source: int, size_bytes: int) -> None:
        if size_bytes:
            self.gpu.copy(target, source, size_bytes, self._stream)
            self.gpu.synchronize(self._stream)

    def _free_pinned(self, address: int) -> None:
        del self._pinned[address]
        self.gpu.free_pinned(address)


class DeviceBuffer:
    """Device memory; freed with the object."""

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...], dtype: str) -> None:
        self.shape, self.dtype, self._memory = shape, dtype, memory
        self._row_bytes = prod(shape[1:]) * DTYPE_BYTES[dtype]
        self.address = memory.gpu.allocate(max(1, shape[0] * self._row_bytes))
        weakref.finalize(self, memory.gpu.free, self.address)

    def rows(self, first: int, count: int) -> Binding:
        assert first >= 0 and first + count <= self.shape[0]
        return Binding(self.address + first * self._row_bytes, (count, *self.shape[1:]), self.dtype, on_host=False)

    def read(self) -> Array:
        return self._memory.download(self.address, self.shape, self.dtype)

    def zero_row(self, row: int) -> None:
        self._memory.clear(self.address + row * self._row_bytes, self._row_bytes)
