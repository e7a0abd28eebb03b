"""The ONNX Runtime backend, on the CPU and on CUDA.

On the CPU the weights of a large fp32 graph stay in the mapped file: a load costs nothing, and processes share them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bundle.errors import IncompatibleError, ResourceError, VlmTrtError
from bundle.signature import Precision
from runtime.backend import NUMPY_DTYPES, Array, Binding, bind_host

# onnxruntime takes ONNX element types where numpy has no dtype (bfloat16).
_ELEMENT_TYPES = {"float32": 1, "int64": 7, "float16": 10, "bfloat16": 16}
# Weights below this are packed into the kernels' own layout at load, which takes half a second at most.
PREPACK_BELOW_BYTES = 512 << 20
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "out of memory", "bfcarena")


class CpuBackend:
    """ONNX Runtime on the CPU: the embedded default, which needs no GPU."""

    name = "onnxruntime-cpu"
    # bf16 graphs have no CPU kernels; fp16 graphs run, with weights up-cast.
    precisions: tuple[Precision, ...] = (Precision.FP32, Precision.FP16)

    def __init__(self, threads: int | None = None, *, prepack: bool | None = None) -> None:
        """
        Args:
            threads: compute threads; None leaves the choice to ONNX Runtime (one per core).
            prepack: copies the weights into the kernels' own layout at load: more memory and a slower load,
                faster vision, prefill and batches. None: only small graphs' weights.
        """
        self._threads, self._prepack = threads, prepack

    def allocate(self, shape: tuple[int, ...], dtype: str) -> "HostBuffer":
        try:
            return HostBuffer(np.zeros(shape, dtype=NUMPY_DTYPES[dtype]), dtype)
        except MemoryError as error:
            raise _explained(error, f"{shape} of {dtype}") from error

    def upload(self, array: Array, dtype: str) -> "HostBuffer":
        return HostBuffer(np.ascontiguousarray(array), dtype)

    def open(self, graph: Path) -> "OrtSession":
        options = _options()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if not self.prepacks(graph):
            options.add_session_config_entry("session.disable_prepacking", "1")
        return OrtSession(graph, options, ["CPUExecutionProvider"], "cpu")

    def prepacks(self, graph: Path) -> bool:
        """Whether the weights of this graph are copied into the kernels' own layout."""
        if self._prepack is not None:
            return self._prepack
        weights = graph.with_suffix(".weights")
        return not weights.exists() or weights.stat().st_size < PREPACK_BELOW_BYTES


class CudaBackend:
    """ONNX Runtime on one NVIDIA GPU, for machines without TensorRT."""

    name = "onnxruntime-cuda"
    precisions: tuple[Precision, ...] = (Precision.FP16, Precision.BF16, Precision.FP32)

    def __init__(self, device_id: int = 0) -> None:
        self._device_id = device_id
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise IncompatibleError(
                "this onnxruntime has no CUDA provider; install the extra for it: pip install 'vlm-trt[cuda]'"
            )

    def allocate(self, shape: tuple[int, ...], dtype: str) -> "CudaBuffer":
        return self.upload(np.zeros(shape, dtype=NUMPY_DTYPES[dtype]), dtype)

    def upload(self, array: Array, dtype: str) -> "CudaBuffer":
        return CudaBuffer(np.ascontiguousarray(array), dtype, self._device_id)

    def open(self, graph: Path) -> "OrtSession":
        provider = (
            "CUDAExecutionProvider",
            {"device_id": str(self._device_id), "arena_extend_strategy": "kSameAsRequested"},
        )
        session = OrtSession(graph, _options(), [provider, "CPUExecutionProvider"], "cuda", self._device_id)
        if "CUDAExecutionProvider" not in session.providers:
            raise IncompatibleError(
                f"{graph.name}: the CUDA provider did not start, so nothing would run on the GPU; "
                "check the driver and the CUDA libraries with `vlm-trt doctor`"
            )
        return session


class HostBuffer:
    """Host memory; pages that are never touched cost nothing."""

    def __init__(self, array: Array, dtype: str) -> None:
        self.shape, self.dtype, self.array = array.shape, dtype, array

    def rows(self, first: int, count: int) -> Binding:
        return bind_host(self.array[first : first + count], self.dtype)

    def read(self) -> Array:
        return self.array

    def zero_row(self, row: int) -> None:
        self.array[row] = 0


class CudaBuffer:
    """Device memory behind an OrtValue."""

    def __init__(self, array: Array, dtype: str, device_id: int) -> None:
        self.shape, self.dtype, self._device_id = array.shape, dtype, device_id
        value, element_type = onnxruntime.OrtValue, _ELEMENT_TYPES[dtype]
        try:
            self._value = value.ortvalue_from_shape_and_type(array.shape, element_type, "cuda", device_id)
        except Exception as error:
            raise _explained(error, f"{array.shape} of {dtype} on the GPU") from error
        self._value.update_inplace(value.ortvalue_from_numpy_with_onnx_type(array, element_type))

    def rows(self, first: int, count: int) -> Binding:
        shape = (count, *self.shape[1:])
        row_bytes = Binding(0, (1, *self.shape[1:]), self.dtype, on_host=False).size_bytes
        assert first + count <= self.shape[0]
        return Binding(self._value.data_ptr() + first * row_bytes, shape, self.dtype, on_host=False)

    def read(self) -> Array:
        if self.dtype == "bfloat16":
            raise IncompatibleError(
                "a bfloat16 tensor cannot be read back through ONNX Runtime; verify in fp16 or fp32"
            )
        values: Array = self._value.numpy()
        return values

    def zero_row(self, row: int) -> None:
        # Rare, after a non-finite value: through the host; a bf16 buffer, unreadable to numpy, is cleared whole.
        host = np.zeros(self.shape, np.uint16) if self.dtype == "bfloat16" else self.read().copy()
        host[row] = 0
        element_type = _ELEMENT_TYPES[self.dtype]
        self._value.update_inplace(onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(host, element_type))


class OrtSession:
    """A graph loaded by ONNX Runtime. Only what changed since the last run is bound again."""

    def __init__(
        self, graph: Path, options: onnxruntime.SessionOptions, providers: list[Any], device: str, device_id: int = 0
    ) -> None:
        self._graph, self._device, self._device_id = graph, device, device_id
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        except Exception as error:
            raise _explained(error, f"loading {graph}") from error
        self.providers: list[str] = self._session.get_providers()
        self._io = self._session.io_binding()
        self._bound: dict[str, Binding] = {}

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> None:
        try:
            for name, binding in inputs.items():
                # A host tensor of a GPU session is copied when it is bound, so it is bound at every run.
                if self._changed(name, binding) or (binding.on_host and self._device != "cpu"):
                    self._io.bind_input(name, *self._memory(binding), binding.shape, binding.address)
                    self._bound[name] = binding
            for name, binding in outputs.items():
                if self._changed(name, binding):
                    device, device_id, dtype = self._memory(binding)
                    self._io.bind_output(name, device, device_id, dtype, binding.shape, binding.address)
                    self._bound[name] = binding
            self._session.run_with_iobinding(self._io)
        except Exception as error:
            self._bound.clear()
            raise _explained(error, f"running {self._graph.name}") from error

    def _changed(self, name: str, binding: Binding) -> bool:
        previous = self._bound.get(name)
        return previous is not binding and previous != binding

    def _memory(self, binding: Binding) -> tuple[str, int, int]:
        element_type = _ELEMENT_TYPES[binding.dtype]
        return ("cpu", 0, element_type) if binding.on_host else (self._device, self._device_id, element_type)


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2  # warnings: "in-place optimization not activated" must stay visible
    return options


def _explained(error: Exception, doing: str) -> VlmTrtError:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY):
        return ResourceError(
            f"not enough memory for {doing}; lower --max-batch or --max-seq-tokens at export, or use a smaller "
            "precision"
        )
    return VlmTrtError(f"ONNX Runtime failed at {doing}: {text}")


def cuda_devices() -> bool:
    """Whether this onnxruntime has the CUDA provider and a device answers."""
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    try:
        onnxruntime.OrtValue.ortvalue_from_shape_and_type((1,), _ELEMENT_TYPES["float32"], "cuda", 0)
    except Exception:  # no driver, no device, or missing CUDA libraries: whatever it is, CUDA does not start here
        return False
    return True
