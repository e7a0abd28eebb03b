"""ONNX Runtime on one NVIDIA GPU, for machines without TensorRT."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

from bundle.entries import EngineEntry
from bundle.errors import IncompatibleError
from bundle.signature import Precision
from bundle.store import Bundle
from runtime.backend import Array, Binding
from runtime.device_memory import DeviceBuffer, DeviceMemory
from runtime.gpu import Gpu
from runtime.ort import OrtSession, session_options

_PROVIDER = "CUDAExecutionProvider"


class CudaBackend:
    """The graphs on the GPU. Features and cache stay there: what is bound is device memory of our own."""

    name = "onnxruntime-cuda"
    precisions: tuple[Precision, ...] = (Precision.FP16, Precision.BF16, Precision.FP32)
    whole_window = False
    overlaps = False

    def __init__(self, gpu: Gpu, device_id: int = 0) -> None:
        """
        Args:
            gpu: the GPU of that number.
            device_id: for ONNX Runtime.
        """
        self._memory, self._device_id = DeviceMemory(gpu), device_id

    def engines(self, bundle: Bundle, precision: Precision) -> tuple[EngineEntry, ...]:
        return ()

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return self._memory.buffer(shape, dtype)

    def upload(self, array: Array, dtype: str) -> DeviceBuffer:
        return self._memory.upload(array, dtype)

    def gather(self, parts: Sequence[Binding]) -> DeviceBuffer:
        return self._memory.gather(parts)

    def host(self, shape: tuple[int, ...], dtype: str) -> Array:
        return self._memory.pinned(shape, dtype)

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        options = {"device_id": str(self._device_id), "arena_extend_strategy": "kSameAsRequested"}
        providers = [(_PROVIDER, options), "CPUExecutionProvider"]
        session = OrtSession(file, session_options(), providers, "cuda", self._device_id)
        if _PROVIDER not in session.providers:
            raise IncompatibleError(
                f"{file.name}: the CUDA provider did not start, so nothing would run on the GPU; "
                "check the driver and the CUDA libraries with `vlm-trt doctor`"
            )
        return session


def require_provider() -> None:
    """
    Raises:
        IncompatibleError: this onnxruntime cannot use a GPU.
    """
    if _PROVIDER not in onnxruntime.get_available_providers():
        raise IncompatibleError(
            "this onnxruntime has no CUDA provider; install the extra for it: pip install 'vlm-trt[cuda]'"
        )


def can_start() -> bool:
    """Whether this onnxruntime has the CUDA provider, and cuda-bindings and a GPU are there."""
    if _PROVIDER not in onnxruntime.get_available_providers() or find_spec("cuda") is None:
        return False
    from runtime.cuda import cuda_works

    return cuda_works()
