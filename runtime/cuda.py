"""One NVIDIA GPU through cuda-bindings: memory, streams, copies, graphs. Every return code is looked at."""

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError, ResourceError, VlmTrtError

try:
    from cuda.bindings import runtime as cudart
except ImportError as error:
    raise IncompatibleError(
        f"cuda-bindings cannot be imported ({error}), and nothing reaches the GPU without it; install it: "
        "pip install cuda-bindings"
    ) from None

_DRIVER = Path("/proc/driver/nvidia/version")  # without one, CUDA calls what is not there too old


class CudaGpu:
    """The GPU of that number. Source: CUDA Runtime API reference, 13."""

    def __init__(self, device_id: int = 0) -> None:
        """
        Raises:
            IncompatibleError: no driver, or no such GPU.
        """
        count = _devices()
        if device_id >= count:
            raise IncompatibleError(
                f"there is no GPU {device_id} here ({count} found); check the driver with `vlm-trt doctor`, or answer "
                "on the CPU with --backend cpu"
            )
        self.device_id = device_id
        self.use()
        attribute = cudart.cudaDeviceAttr
        major, minor = (
            _checked("cudaDeviceGetAttribute", cudart.cudaDeviceGetAttribute(which, device_id))
            for which in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor)
        )
        properties = _checked("cudaGetDeviceProperties", cudart.cudaGetDeviceProperties(device_id))
        self.target = f"sm{major}{minor}"
        self.description = f"{properties.name.split(bytes(1))[0].decode()}, driver {_driver_version()}"
        self._handles: dict[int, Any] = {}  # cuda-bindings' objects behind our numbers

    def use(self) -> None:
        """Makes this the GPU of the calling thread."""
        _checked("cudaSetDevice", cudart.cudaSetDevice(self.device_id))

    def allocate(self, size_bytes: int) -> int:
        address = int(_checked("cudaMalloc", cudart.cudaMalloc(size_bytes), size_bytes))
        _checked("cudaMemset", cudart.cudaMemset(address, 0, size_bytes))
        _checked("cudaStreamSynchronize", cudart.cudaStreamSynchronize(0))  # our streams do not wait for that one
        return address

    def free(self, address: int) -> None:
        _checked("cudaFree", cudart.cudaFree(address))

    def allocate_pinned(self, size_bytes: int) -> int:
        flags = cudart.cudaHostAllocDefault
        address = int(_checked("cudaHostAlloc", cudart.cudaHostAlloc(size_bytes, flags), size_bytes))
        ctypes.memset(address, 0, size_bytes)
        return address

    def free_pinned(self, address: int) -> None:
        _checked("cudaFreeHost", cudart.cudaFreeHost(address))

    def open_stream(self) -> int:
        self.use()
        made = cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)
        return self._number(_checked("cudaStreamCreateWithFlags", made))

    def synchronize(self, stream: int) -> None:
        _checked("cudaStreamSynchronize", cudart.cudaStreamSynchronize(self._handles[stream]))

    def copy(self, target: int, source: int, size_bytes: int, stream: int) -> None:
        kind = cudart.cudaMemcpyKind.cudaMemcpyDefault  # the driver knows what lies at either address
        copied = cudart.cudaMemcpyAsync(target, source, size_bytes, kind, self._handles[stream])
        _checked("cudaMemcpyAsync", copied)

    def copy_rows(self, target: int, source: int, size_bytes: int, rows: int, pitch_bytes: int, stream: int) -> None:
        kind, handle = cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice, self._handles[stream]
        copied = cudart.cudaMemcpy2DAsync(target, pitch_bytes, source, pitch_bytes, size_bytes, rows, kind, handle)
        _checked("cudaMemcpy2DAsync", copied)

    def clear(self, address: int, size_bytes: int, stream: int) -> None:
        _checked("cudaMemsetAsync", cudart.cudaMemsetAsync(address, 0, size_bytes, self._handles[stream]))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        handle = self._handles[stream]
        # Thread-local: what another thread does to the GPU meanwhile, such as encoding a picture, is its own affair.
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked("cudaStreamBeginCapture", cudart.cudaStreamBeginCapture(handle, mode))
        try:
            work()
        finally:  # the stream must leave capture mode, whatever happened
            ended = cudart.cudaStreamEndCapture(handle)
            cudart.cudaGetLastError()  # what a refused capture leaves would be taken for a failure of what runs next
        graph = _checked("cudaStreamEndCapture", ended)
        try:
            executable = _checked("cudaGraphInstantiate", cudart.cudaGraphInstantiate(graph, 0))
        finally:
            cudart.cudaGraphDestroy(graph)
        return self._number(executable)

    def launch(self, graph: int, stream: int) -> None:
        _checked("cudaGraphLaunch", cudart.cudaGraphLaunch(self._handles[graph], self._handles[stream]))

    def discard(self, graph: int) -> None:
        _checked("cudaGraphExecDestroy", cudart.cudaGraphExecDestroy(self._handles.pop(graph)))

    def _number(self, handle: Any) -> int:
        number = int(handle)
        self._handles[number] = handle
        return number


def _driver_version() -> str:
    """Of the driver itself where the kernel tells, else of the CUDA that it knows."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text())
    except OSError:
        found = None
    if found is not None:
        return found.group()
    known = int(_checked("cudaDriverGetVersion", cudart.cudaDriverGetVersion()))
    return f"for CUDA {known // 1000}.{known % 1000 // 10}"


def cuda_works() -> bool:
    """Whether a driver and at least one GPU answer."""
    try:
        return _devices() > 0
    except VlmTrtError:
        return False


def _devices() -> int:
    status, count = cudart.cudaGetDeviceCount()
    if status == cudart.cudaError_t.cudaErrorNoDevice:
        return 0
    if status == cudart.cudaError_t.cudaErrorInsufficientDriver and not _DRIVER.exists():
        raise IncompatibleError(
            "there is no NVIDIA GPU here, or no driver for it; see what this machine can do with `vlm-trt doctor`, or "
            "answer on the CPU with --backend cpu"
        )
    if status != cudart.cudaError_t.cudaSuccess:
        raise IncompatibleError(
            f"CUDA does not start here ({_described(status)}); check the driver with `vlm-trt doctor`, or answer on "
            "the CPU with --backend cpu"
        )
    return int(count)


def _checked(call: str, result: tuple[Any, ...], size_bytes: int = 0) -> Any:
    """What a CUDA call gave besides its status.

    Raises:
        ResourceError: no memory of `size_bytes`. VlmTrtError: any other failure; also of earlier work on the GPU.
    """
    status, *values = result
    if status == cudart.cudaError_t.cudaSuccess:
        return values[0] if values else None
    if status == cudart.cudaError_t.cudaErrorMemoryAllocation:
        raise ResourceError(
            f"the GPU has no {size_bytes / 2**20:,.0f} MiB left ({call}); lower --max-batch or --max-seq-tokens at "
            "export, use a smaller precision, or end other programs on this GPU"
        )
    raise VlmTrtError(
        f"{call} failed: {_described(status)}. The GPU's state is unknown now: start the program again, and if it "
        "happens again, build the engines again with: vlm-trt build"
    )


def _described(status: Any) -> str:
    name, text = (call(status)[1] for call in (cudart.cudaGetErrorName, cudart.cudaGetErrorString))
    return f"{name.decode()}: {text.decode()}"
