"""Test equipment: a GPU and a TensorRT in host memory, for the code that runs engines. No user can reach it.

It keeps the rules of the real ones and makes every breach an error: work waits on its stream until somebody waits for
it; copies run between device and pinned memory only and end where their memory ends; memory that was freed is gone; a
graph replays the addresses and shapes it was captured with; an engine takes shapes within its profile, and updates
its caches in place. What a kernel would compute, ONNX Runtime computes from the graph.
"""

import ctypes
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from math import prod
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from vlm_trt.bundle.errors import IncompatibleError, ResourceError, VlmTrtError
from vlm_trt.bundle.precision import DTYPE_BYTES
from vlm_trt.runtime.ort import CpuBackend

Bytes = NDArray[np.uint8]
_TYPES = {"tensor(float)": ("float32", 1), "tensor(float16)": ("float16", 10), "tensor(int64)": ("int64", 7)}


class BrokenRuleError(AssertionError):
    """What CUDA or TensorRT would refuse, or worse, not refuse."""


@dataclass
class HostGpu:
    """A GPU of `size_bytes`."""

    size_bytes: int = 1 << 30
    target: str = "sm89"
    description: str = "host memory, for tests"
    device: dict[int, Bytes] = field(default_factory=dict)
    pinned: dict[int, Bytes] = field(default_factory=dict)
    streams: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    graphs: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    capturing: tuple[int, int] | None = None  # thread and stream
    launches: int = 0
    fail_next: VlmTrtError | None = None  # raised by the next wait, as a kernel's failure would be
    refuse_captures: VlmTrtError | None = None  # raised when a capture ends
    _numbers: Any = field(default_factory=lambda: count(1))

    def allocate(self, size_bytes: int) -> int:
        self._require_no_capture("cudaMalloc")
        if sum(memory.nbytes for memory in list(self.device.values())) + size_bytes > self.size_bytes:
            raise ResourceError(f"the GPU has no {size_bytes / 2**20:,.0f} MiB left")
        return self._own(self.device, size_bytes)

    def free(self, address: int) -> None:
        del self.device[address]

    def allocate_pinned(self, size_bytes: int) -> int:
        self._require_no_capture("cudaHostAlloc")
        return self._own(self.pinned, size_bytes)

    def free_pinned(self, address: int) -> None:
        del self.pinned[address]

    def open_stream(self) -> int:
        number: int = next(self._numbers)
        self.streams[number] = []
        return number

    def synchronize(self, stream: int) -> None:
        self._require_no_capture("cudaStreamSynchronize")
        if self.fail_next is not None:
            failure, self.fail_next = self.fail_next, None
            self.streams[stream].clear()
            raise failure
        work, self.streams[stream] = self.streams[stream], []
        for one in work:
            one()

    def copy(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        def run() -> None:
            self.view(target, size_bytes)[...] = self.view(source, size_bytes)

        self.view(target, size_bytes), self.view(source, size_bytes)
        self.put(stream, run)

    def copy_rows(self, target: int, source: int, size_bytes: int, rows: int, pitch_bytes: int, stream: int) -> None:
        if size_bytes > pitch_bytes:
            raise BrokenRuleError(f"rows of {size_bytes} bytes, {pitch_bytes} apart")

        def run() -> None:
            for at in range(0, rows * pitch_bytes, pitch_bytes):
                self.device_view(target + at, size_bytes)[...] = self.device_view(source + at, size_bytes)

        self.put(stream, run)

    def clear(self, address: int, size_bytes: int, stream: int) -> None:
        self.put(stream, lambda: self.device_view(address, size_bytes).fill(0))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        self._require_no_capture("cudaStreamBeginCapture")
        before, self.streams[stream] = self.streams[stream], []
        self.capturing = get_ident(), stream
        try:
            work()
        finally:
            self.capturing = None
            captured, self.streams[stream] = self.streams[stream], before
        if self.refuse_captures is not None:
            raise self.refuse_captures
        number: int = next(self._numbers)
        self.graphs[number] = captured
        return number

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for one in self.graphs[graph]:
            self.put(stream, one)

    def discard(self, graph: int) -> None:
        del self.graphs[graph]

    def put(self, stream: int, work: Callable[[], None]) -> None:
        """Work at the end of a stream."""
        if self.captures() and self.capturing != (get_ident(), stream):
            raise BrokenRuleError("work on another stream while one is captured")
        self.streams[stream].append(work)

    def view(self, address: int, size_bytes: int) -> Bytes:
        """Memory of the device or pinned memory."""
        for memories in (self.device, self.pinned):
            for start, memory in list(memories.items()):
                if start <= address < start + memory.nbytes:
                    if address + size_bytes > start + memory.nbytes:
                        raise BrokenRuleError(f"{size_bytes} bytes at {address - start} of {memory.nbytes}")
                    return memory[address - start :][:size_bytes]
        raise BrokenRuleError("memory that was freed, or is neither the device's nor pinned")

    def device_view(self, address: int, size_bytes: int) -> Bytes:
        """Memory of the device, and of nothing else."""
        if not any(start <= address < start + memory.nbytes for start, memory in list(self.device.items())):
            raise BrokenRuleError("memory that is not the device's")
        return self.view(address, size_bytes)

    def _own(self, memories: dict[int, Bytes], size_bytes: int) -> int:
        if size_bytes <= 0:
            raise BrokenRuleError("an allocation of nothing")
        memory = np.zeros(size_bytes, np.uint8)
        memories[memory.ctypes.data] = memory
        return memory.ctypes.data

    def captures(self) -> bool:
        """Whether this thread captures; what others do meanwhile is their affair."""
        return self.capturing is not None and self.capturing[0] == get_ident()

    def _require_no_capture(self, call: str) -> None:
        if self.captures():
            raise BrokenRuleError(f"{call} while a stream is captured")


@dataclass
class HostPlans:
    """A TensorRT whose engines are JSON: a graph, and the profiles it was built for."""

    gpu: HostGpu
    backend: str = "tensorrt-rtx"
    version: str = "1.0"
    tried: list[Path] = field(default_factory=list)

    def try_out(self, file: Path, sha256: str, gpu: str) -> None:
        self.tried.append(file)

    def load(self, data: bytes | memoryview, name: str, sha256: str) -> "HostPlan":
        try:
            content = json.loads(bytes(data))
        except ValueError:
            raise IncompatibleError(f"{self.backend} {self.version} does not take {name}") from None
        return HostPlan(self.gpu, content["graph"], content["profiles"])


class HostPlan:
    def __init__(self, gpu: HostGpu, graph: str, profiles: list[dict[str, list[list[int]]]]) -> None:
        self._gpu, self._profiles = gpu, profiles
        self.layers = [node.name for node in onnx.load(graph, load_external_data=False).graph.node]
        options = CpuBackend().options(Path(graph))
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = tuple(one.name for one in self.session.get_inputs())
        self.outputs = tuple(one.name for one in self.session.get_outputs())
        self.profile_count = len(profiles)
        self.used: set[int] = set()
        self.capturable = True  # no kernel is being compiled

    def shapes(self, tensor: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(axis[which] for axis in self._profiles[profile][tensor]) for which in range(3))

    def aliases(self) -> Iterable[tuple[str, str]]:
        for output in self.outputs:
            if output.startswith("present."):
                yield output, output.replace("present.", "past_key_values.")

    def open(self, profile: int, stream: int) -> "HostContext":
        if profile in self.used:
            raise BrokenRuleError(f"a second context for profile {profile}")
        self.used.add(profile)
        return HostContext(self._gpu, self, profile)


class HostContext:
    def __init__(self, gpu: HostGpu, plan: HostPlan, profile: int) -> None:
        self._gpu, self._plan, self._profile = gpu, plan, profile
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self._flushed: dict[str, tuple[int, ...]] | None = None  # the shapes of the last run outside a capture
        self._report: Callable[[str, float], None] | None = None

    def can_capture(self, stream: int) -> bool:
        return self._plan.capturable

    def time_layers(self, report: Callable[[str, float], None]) -> None:
        self._report = report

    def set_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        low, _, high = self._plan.shapes(tensor, self._profile)
        if len(shape) != len(low) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            raise BrokenRuleError(f"{tensor} {shape} outside {low}…{high}")
        self.shapes[tensor] = shape

    def set_address(self, tensor: str, address: int) -> None:
        self._gpu.device_view(address, 1)
        self.addresses[tensor] = address

    def enqueue(self, stream: int) -> None:
        plan, shapes, addresses = self._plan, dict(self.shapes), dict(self.addresses)
        if missing := (set(plan.inputs) - set(shapes)) | ({*plan.inputs, *plan.outputs} - set(addresses)):
            raise BrokenRuleError(f"{sorted(missing)} not set")
        for output, source in plan.aliases():
            if addresses[output] != addresses[source]:
                raise BrokenRuleError(f"{output} is not at {source}")
        if self._report is not None:
            if self._gpu.captures():
                raise BrokenRuleError("captured while layers are timed")
            for name in self._plan.layers:  # as TensorRT names what it has fused, and its second profile
                self._report(f"{name}+{name}_cast [profile {self._profile}]", 0.5)
        if not self._gpu.captures():
            self._flushed = shapes
        elif self._flushed != shapes:
            raise BrokenRuleError("captured before a run with these shapes")
        self._gpu.put(stream, lambda: self._run(shapes, addresses))

    def _run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        session, gpu = self._plan.session, self._gpu
        io = session.io_binding()
        symbols: dict[str, int] = {}
        for one in session.get_inputs():
            dtype, element = _TYPES[one.type]
            symbols |= {axis: n for axis, n in zip(one.shape, shapes[one.name], strict=True) if isinstance(axis, str)}
            gpu.device_view(addresses[one.name], prod(shapes[one.name]) * DTYPE_BYTES[dtype])
            io.bind_input(one.name, "cpu", 0, element, shapes[one.name], addresses[one.name])
        for one in session.get_outputs():
            dtype, element = _TYPES[one.type]
            shape = tuple(symbols.get(axis, axis) for axis in one.shape)
            if any(isinstance(axis, str) for axis in shape):  # that no input has: known when it is computed
                io.bind_output(one.name, "cpu")
                continue
            gpu.device_view(addresses[one.name], prod(shape) * DTYPE_BYTES[dtype])
            io.bind_output(one.name, "cpu", 0, element, shape, addresses[one.name])
        session.run_with_iobinding(io)
        for one, value in zip(session.get_outputs(), io.get_outputs(), strict=True):
            made = np.ascontiguousarray(value.numpy()).view(np.uint8).reshape(-1)
            gpu.device_view(addresses[one.name], made.nbytes)[:] = made


def read(gpu: HostGpu, address: int, size_bytes: int) -> bytes:
    """What lies there, whoever owns it."""
    return ctypes.string_at(gpu.view(address, size_bytes).ctypes.data, size_bytes)
