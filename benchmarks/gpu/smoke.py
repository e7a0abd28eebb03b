"""Stage "smoke": what the runtime asks of CUDA, one call after another, and how fast the device is at all."""

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import torch

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.runtime.backend import bind_host
from vlm_trt.runtime.device_memory import DeviceMemory
from vlm_trt.runtime.gpu import Gpu

_RUNS = 10
# Bytes of a copy and side of a product, on a GPU and, where there is none, in a rehearsal.
_COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}
_SIDE = {"cuda": 8192, "cpu": 512}


def steps(kit: Kit) -> Iterator[Step]:
    if kit.device.name != "cpu":
        gpu = _gpu(kit)
        memory = DeviceMemory(gpu)
        yield "memory is zeroed, copied and used again", partial(_memory, memory)
        yield "a captured copy is replayed", partial(_captured, gpu)
        yield "a refused capture leaves the stream usable", partial(_refused, gpu)
    yield "bytes per second", partial(_bandwidth, kit)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        yield f"products in {str(dtype).removeprefix('torch.')}", partial(_products, kit, dtype)


def _gpu(kit: Kit) -> Gpu:
    if kit.device.name == "stand-in":
        from tests.host_gpu import HostGpu

        return HostGpu()
    from vlm_trt.runtime.cuda import CudaGpu

    return CudaGpu()


def _memory(memory: DeviceMemory) -> Found:
    values = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    buffer = memory.upload(values, "float32")
    assert np.array_equal(buffer.read(), values), "what was uploaded came back as something else"
    buffer.zero_row(7)
    assert not buffer.read()[7].any() and np.array_equal(buffer.read()[8], values[8]), "one row was to be cleared"
    address = buffer.address
    del buffer
    again = memory.buffer((1024, 1024), "float32")
    assert again.address == address and not again.read().any(), "memory that is used again was to be zeroed"
    host = memory.pinned((16,), "float32")
    assert memory.pinned_room(bind_host(host[4:], "float32")) == 48
    return {"gpu": memory.gpu.description, "target": memory.gpu.target}


def _captured(gpu: Gpu) -> Found:
    stream, source, target = gpu.open_stream(), gpu.allocate_pinned(64), gpu.allocate_pinned(64)
    device = gpu.allocate(64)

    def work() -> None:
        gpu.copy(device, source, 64, stream)
        gpu.copy(target, device, 64, stream)

    graph = gpu.capture(stream, work)
    for value in (3, 250):
        ctypes.memset(source, value, 64)
        gpu.launch(graph, stream)
        gpu.synchronize(stream)
        assert ctypes.string_at(target, 64) == bytes([value] * 64), "the graph did not copy what lay there"
    gpu.discard(graph)
    gpu.free(device)
    return {"replays": 2}


def _refused(gpu: Gpu) -> Found:
    stream, device = gpu.open_stream(), gpu.allocate(64)
    told = "nothing: it was captured"
    try:
        gpu.discard(gpu.capture(stream, lambda: gpu.synchronize(stream)))  # nobody may wait while a stream is captured
    except (VlmTrtError, AssertionError) as error:  # the second is the rehearsal's
        told = str(error)
    gpu.clear(device, 64, stream)
    gpu.synchronize(stream)
    gpu.free(device)
    return {"said": told}


def _bandwidth(kit: Kit) -> Found:
    """Of one copy on the device: what is read and what is written, of random data, which zeros would flatter."""
    size = _COPY_BYTES[kit.device.torch]
    source = torch.randn(size // 4, device=kit.device.torch)
    target = torch.empty_like(source)
    seconds = _seconds(kit, lambda: target.copy_(source))
    return {"bytes_per_second": 2 * size / seconds, "bytes": 2 * size}


def _products(kit: Kit, dtype: torch.dtype) -> Found:
    torch.backends.cuda.matmul.allow_tf32 = False
    side = _SIDE[kit.device.torch]
    left, right = (torch.randn(side, side, device=kit.device.torch).to(dtype) for _ in range(2))
    seconds = _seconds(kit, lambda: left @ right)
    return {"flops": 2 * side**3 / seconds, "side": side}


def _seconds(kit: Kit, work: Callable[[], object]) -> float:
    times = []
    for _ in range(_RUNS + 2):
        kit.device.synchronize()
        started = perf_counter()
        work()
        kit.device.synchronize()
        times.append(perf_counter() - started)
    return median(times[2:])
