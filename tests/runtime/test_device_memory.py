"""Memory of a GPU backend, used by the picture thread and the decoding thread at once."""

import sys
from collections.abc import Iterator
from threading import Event, Thread

import pytest

from tests.host_gpu import HostGpu
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
        assert all(memory.is_pinned(bound) for _ in range(2000))
    finally:
        done.set()
        thread.join()
    assert len(memory._pinned) == len(kept)
