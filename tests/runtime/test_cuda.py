"""CUDA's return codes, and engines that are tried out in a process of their own."""

from pathlib import Path

import numpy as np
import pytest

from vlm_trt.bundle.errors import IncompatibleError, ResourceError, VlmTrtError
from vlm_trt.runtime.backends import choose_backend
from vlm_trt.runtime.kernel_cache import KernelCache
from vlm_trt.runtime.plan import TensorRt
from vlm_trt.runtime.try_out import require_loaded, try_out

cuda = pytest.importorskip(
    "vlm_trt.runtime.cuda", reason="needs cuda-bindings, which the extra `tensorrt-rtx` installs"
)


def without_gpu() -> None:
    if cuda.cuda_works():
        pytest.skip("a GPU is here, so its absence cannot be tested")


def test_no_gpu_is_said() -> None:
    without_gpu()
    with pytest.raises(
        IncompatibleError, match=r"there is no NVIDIA GPU here, or no driver for it|CUDA does not start here|no GPU 0"
    ):
        cuda.CudaGpu()


def test_what_is_remembered_of_a_gpu_names_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that was tried out under one driver is tried again under another."""
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC 12.3\n")
    monkeypatch.setattr(cuda, "_DRIVER", version)
    assert cuda._driver_version() == "580.95.05"


def test_every_other_status_than_success_is_an_error() -> None:
    status = cuda.cudart.cudaError_t
    assert cuda._checked("cudaMalloc", (status.cudaSuccess, 7)) == 7
    assert cuda._checked("cudaFree", (status.cudaSuccess,)) is None
    with pytest.raises(ResourceError, match=r"the GPU has no 3,072 MiB left \(cudaMalloc\); lower --max-batch"):
        cuda._checked("cudaMalloc", (status.cudaErrorMemoryAllocation, 0), 3 << 30)
    with pytest.raises(VlmTrtError, match=r"cudaStreamSynchronize failed: cudaErrorIllegalAddress: an illegal memory"):
        cuda._checked("cudaStreamSynchronize", (status.cudaErrorIllegalAddress,))


def test_tensorrt_without_a_gpu_is_said() -> None:
    without_gpu()
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(
        IncompatibleError,
        match=r"there is no NVIDIA GPU here.* on the CPU with --backend cpu|CUDA does not start|no GPU 0",
    ):
        choose_backend("tensorrt-rtx")


def test_what_is_no_engine_is_refused_with_tensorrts_own_reason(tmp_path: Path) -> None:
    """The real runtime reads the head of a plan without a GPU."""
    pytest.importorskip("tensorrt_rtx")
    file = tmp_path / "decoder.plan"
    file.write_bytes(b"no engine" * 100)
    with pytest.raises(IncompatibleError, match=r"tensorrt-rtx \S+ does not take decoder: .*(?i:magic).*vlm-trt build"):
        TensorRt("tensorrt-rtx").load(np.memmap(file, np.uint8, "r").data, "decoder", "")


def test_an_engine_that_does_not_load_is_said_by_the_process_that_tried(tmp_path: Path) -> None:
    """Here that process finds no GPU; its sentence arrives, and nothing is remembered."""
    without_gpu()
    pytest.importorskip("tensorrt_rtx")
    file = tmp_path / "decoder.plan"
    file.write_bytes(b"no engine")
    for _ in range(2):
        with pytest.raises(IncompatibleError, match="there is no NVIDIA GPU here|CUDA does not start here"):
            TensorRt("tensorrt-rtx").try_out(file, "0" * 64, "a GPU")


def test_how_a_process_ended_becomes_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "decoder.plan"
    require_loaded(file, 0, "warnings")
    with pytest.raises(IncompatibleError, match=r"decoder\.plan crashes what reads it \(SIGSEGV\), so it is damaged"):
        require_loaded(file, -11, "")
    with pytest.raises(IncompatibleError, match=r"^tensorrt 11 does not take it$"):
        require_loaded(file, 3, "a warning\ntensorrt 11 does not take it\n")
    with pytest.raises(IncompatibleError, match=r"decoder\.plan could not be tried out: KeyError: 'x'"):
        require_loaded(file, 1, "Traceback\nKeyError: 'x'\n")


def test_an_engine_that_loaded_once_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    import subprocess

    calls: list[object] = []

    def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        calls.append(arguments)
        return subprocess.CompletedProcess([], 0, "", "")

    monkeypatch.setattr("vlm_trt.runtime.try_out.subprocess.run", run)
    for version in ("1.7", "1.7", "1.8"):
        try_out(["load"], tmp_path / "decoder.plan", ("tensorrt-rtx", version, "0" * 64, "a GPU"))
    assert len(calls) == 2, "once for each version"


class Kernels:
    """What the cache needs of TensorRT-RTX's, which exists beside an engine on a GPU only."""

    def __init__(self, compiled: bytes = b"") -> None:
        self.compiled = compiled

    def serialize(self) -> bytes:
        return self.compiled

    def deserialize(self, blob: bytes) -> bool:
        self.compiled = blob
        return True


def test_compiled_kernels_are_there_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = Kernels()
    cache = KernelCache(first, "a" * 64)
    first.compiled = b"kernels of two shapes"
    cache.save()
    again, other = Kernels(), Kernels()
    KernelCache(again, "a" * 64)
    KernelCache(other, "b" * 64)
    assert (again.compiled, other.compiled) == (b"kernels of two shapes", b"")
    assert [file.name for file in (tmp_path / "vlm-trt" / "kernels").iterdir()] == ["a" * 64 + ".bin"]
