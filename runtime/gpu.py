"""What the backends on a GPU need of CUDA and of TensorRT, as two narrow interfaces.

`runtime/cuda.py` and `runtime/plan.py` implement them. Addresses are integers; work on a stream runs in its order.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol


class Gpu(Protocol):
    """One GPU. Every call that fails raises a VlmTrtError that says what failed."""

    target: str  # compute capability, such as "sm89"
    description: str  # name and driver

    def allocate(self, size_bytes: int) -> int:
        """Address of device memory, zeroed.

        Raises:
            ResourceError: the GPU has too little.
        """

    def free(self, address: int) -> None:
        """Gives device memory back; nothing may use it any more."""

    def allocate_pinned(self, size_bytes: int) -> int:
        """Address of zeroed host memory that stays where it is, so that copies run beside the host's work."""

    def free_pinned(self, address: int) -> None:
        """Gives pinned memory back."""

    def open_stream(self) -> int:
        """A stream that waits for no other."""

    def synchronize(self, stream: int) -> None:
        """Waits until all work on the stream is done.

        Raises:
            VlmTrtError: a part of that work failed.
        """

    def copy(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        """Copies between device memory and pinned memory, either way, or within the device."""

    def copy_rows(self, target: int, source: int, size_bytes: int, rows: int, pitch_bytes: int, stream: int) -> None:
        """Copies so many bytes of each of several rows within the device; rows of both lie `pitch_bytes` apart."""

    def clear(self, address: int, size_bytes: int, stream: int) -> None:
        """Zeroes device memory."""

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """What `work` puts on the stream, as one graph; nothing of it runs yet.

        Raises:
            VlmTrtError: it cannot be captured; the stream takes work again.
        """

    def launch(self, graph: int, stream: int) -> None:
        """Runs a captured graph, with the addresses and shapes that it was captured with."""

    def discard(self, graph: int) -> None:
        """Forgets a captured graph."""


class Context(Protocol):
    """An engine in one phase: shapes and addresses of its tensors, and scratch memory of its own."""

    def set_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        """Sets an input's shape, which lies in the profile."""

    def set_address(self, tensor: str, address: int) -> None:
        """Binds a tensor to device memory."""

    def enqueue(self, stream: int) -> None:
        """Puts one run on the stream."""

    def can_capture(self, stream: int) -> bool:
        """Whether its next run can be captured: not while kernels for these shapes are still being compiled."""

    def time_layers(self, report: Callable[[str, float], None]) -> None:
        """Tells the name and the milliseconds of every layer of each run from now on; a run is done when it returns,
        and cannot be captured.
        """


class Plan(Protocol):
    """An engine in device memory."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    profile_count: int

    def shapes(self, tensor: str, profile: int) -> tuple[tuple[int, ...], ...]:
        """Smallest, best and largest shape of an input."""

    def aliases(self) -> Iterable[tuple[str, str]]:
        """Outputs that must be bound to the memory of an input, and that input."""

    def open(self, profile: int, stream: int) -> Context:
        """A context for one profile; contexts share the weights."""


class Plans(Protocol):
    """A TensorRT that is installed."""

    backend: str  # "tensorrt" or "tensorrt-rtx"
    version: str

    def try_out(self, file: Path, sha256: str, gpu: str) -> None:
        """Loads an engine in another process, which a damaged one may crash; once for each engine and GPU.

        Raises:
            IncompatibleError: it does not load.
        """

    def load(self, data: bytes | memoryview, name: str, sha256: str) -> Plan:
        """The engine.

        Raises:
            IncompatibleError: this TensorRT or this GPU does not take it.
        """
