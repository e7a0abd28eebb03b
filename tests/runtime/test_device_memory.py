"""Memory of a GPU backend, used by the picture thread and the decoding thread at once."""

import gc
import sys
from collections.abc import Iterator
from threading import Event, Thread

import numpy as np
import pytest

from tests.host_gpu import HostGpu
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.runtime.backend import bind_host
from vlm_trt.runtime.device_memory import DeviceMemory


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns after microseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_one_thread_asks_for_pinned_memory_while_another_takes_and_frees_it() -> None:
    memory = DeviceMemory(HostGpu())
    kept = [memory.pinned((16,), "float32") for _ in range(200)]
    done = Event()

    def churns() -> None:
        while not done.is_set():
            for _ in range(50):
                memory.pinned((16,), "float32")

    thread = Thread(target=churns)
    thread.start()
    try:
        bound = bind_host(kept[-1][8:], "float32")  # a part of one
        assert all(memory.pinned_room(bound) for _ in range(2000))
    finally:
        done.set()
        thread.join()
    assert len(memory._pinned) == len(kept)


def test_memory_that_was_given_back_serves_the_next_buffer_of_its_size_zeroed() -> None:
    """cudaMalloc and cudaFree wait for the device, and every picture brings two buffers."""
    gpu = HostGpu()
    memory = DeviceMemory(gpu)
    buffer = memory.upload(np.ones((4, 3), np.float32), "float32")
    address = buffer.address
    del buffer
    gc.collect()
    again, other = memory.buffer((3, 4), "float32"), memory.buffer((3, 4), "float32")
    assert again.address == address != other.address and not again.read().any()


def test_memory_that_was_kept_is_given_up_before_there_is_too_little() -> None:
    gpu = HostGpu(size_bytes=1000)
    memory = DeviceMemory(gpu)
    memory.buffer((300,), "float16")
    gc.collect()
    assert memory.buffer((250,), "float16").shape == (250,) and len(gpu.device) == 1
    with pytest.raises(ResourceError):
        memory.buffer((501,), "float16")


def test_what_is_kept_goes_with_the_memory() -> None:
    gpu = HostGpu()
    memory = DeviceMemory(gpu)
    memory.buffer((8,), "float32")
    assert gpu.device
    del memory
    gc.collect()
    assert not gpu.device
