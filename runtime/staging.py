"""Host tensors of a run on a GPU: through pinned memory to device memory that stays where it is, and back."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from vlm_trt.bundle.precision import DTYPE_BYTES
from vlm_trt.runtime.backend import Array, Binding
from vlm_trt.runtime.device_memory import DeviceBuffer, DeviceMemory

_ROOM_BYTES = 1 << 20


@dataclass(frozen=True)
class Bound:
    """Where a tensor lies for the GPU, and from or to which pinned memory it is copied (0: not at all)."""

    address: int
    pinned: int
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


class Staging:
    """Memory for the host tensors of one session or phase, by name."""

    def __init__(self, memory: DeviceMemory, stream: int, largest: Mapping[str, tuple[int, ...]]) -> None:
        """
        Args:
            memory: of the GPU.
            stream: for the copies.
            largest: shapes to make room for at once. Other tensors get what a longer prompt needs too, or the rest
                of the pinned memory that they lie in: those that grow beyond it move, and no captured run fits them.
        """
        self._memory, self._stream, self._largest = memory, stream, largest
        self._device: dict[str, DeviceBuffer] = {}
        self._pinned: dict[str, Array] = {}

    def place(self, name: str, binding: Binding) -> Bound:
        """A device tensor where it lies; a host tensor in staging memory."""
        shape, dtype, size = binding.shape, binding.dtype, binding.size_bytes
        if not binding.on_host:
            return Bound(binding.address, 0, shape, dtype, size)
        buffer, pinned_room = self._device.get(name), self._memory.pinned_room(binding)
        if buffer is None or prod(buffer.shape) < prod(shape):
            most = max(size, pinned_room, _ROOM_BYTES) // DTYPE_BYTES[dtype]
            buffer = self._device[name] = self._memory.buffer((max(most, prod(self._largest.get(name, ()))),), dtype)
            self._pinned.pop(name, None)
        if pinned_room:
            self._pinned.pop(name, None)
            return Bound(buffer.address, binding.address, shape, dtype, size)
        if name not in self._pinned:
            self._pinned[name] = self._memory.pinned(buffer.shape, dtype)
        return Bound(buffer.address, self._pinned[name].ctypes.data, shape, dtype, size)

    def take(self, inputs: Mapping[str, Binding]) -> None:
        """Ordinary host memory → pinned memory, now."""
        for name, binding in inputs.items():
            if name in self._pinned:
                ctypes.memmove(self._pinned[name].ctypes.data, binding.address, binding.size_bytes)

    def give(self, outputs: Mapping[str, Binding]) -> None:
        """Pinned memory → ordinary host memory, now."""
        for name, binding in outputs.items():
            if name in self._pinned:
                ctypes.memmove(binding.address, self._pinned[name].ctypes.data, binding.size_bytes)

    def copy_in(self, inputs: Mapping[str, Bound]) -> None:
        """Pinned memory → device, on the stream."""
        for bound in inputs.values():
            if bound.pinned:
                self._memory.gpu.copy(bound.address, bound.pinned, bound.size_bytes, self._stream)

    def copy_out(self, outputs: Mapping[str, Bound]) -> None:
        """Device → pinned memory, on the stream."""
        for bound in outputs.values():
            if bound.pinned:
                self._memory.gpu.copy(bound.pinned, bound.address, bound.size_bytes, self._stream)
