"""ONNX Runtime on one NVIDIA GPU, for machines without TensorRT."""

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.entries import EngineEntry, GraphEntry, PackedEntry
from vlm_trt.bundle.errors import IncompatibleError, VlmTrtError
from vlm_trt.bundle.installation import how_to_install
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.backend import Array, Binding, StepShapes
from vlm_trt.runtime.device_memory import DeviceBuffer, DeviceMemory
from vlm_trt.runtime.gpu import Gpu
from vlm_trt.runtime.ort import OrtSession, session_options
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime
from vlm_trt.runtime.staging import Bound, Staging
from vlm_trt.runtime.timing import within

PROVIDER = "CUDAExecutionProvider"
_UNCAPTURED = -1  # as the number of a graph


class CudaBackend:
    """The graphs on the GPU. Features and cache stay there: what is bound is device memory of our own."""

    precisions: tuple[Precision, ...] = (Precision.FP16, Precision.BF16, Precision.FP32)
    overlaps = False
    loads_beside = 1
    fewest_scored = 1  # whether its kernels can do without was not tried on a GPU

    def __init__(self, gpu: Gpu, device_id: int = 0, *, graphs: bool = False) -> None:
        """
        Args:
            gpu: the GPU of that number.
            device_id: for ONNX Runtime.
            graphs: decode steps are captured as CUDA graphs: one for each doubling of the window and of the rows.
        """
        load_libraries()
        self.name = "onnxruntime-cuda-graph" if graphs else "onnxruntime-cuda"
        # ONNX Runtime keeps every graph that it captured as long as the session.
        self.steps = StepShapes.FEW if graphs else StepShapes.CLOSE
        self._memory, self._device_id, self._graphs = DeviceMemory(gpu), device_id, graphs
        self._stream = gpu.open_stream()

    def engines(self, bundle: Bundle, precision: Precision) -> tuple[EngineEntry, ...]:
        return ()

    def packed(self, bundle: Bundle, graph: GraphEntry) -> PackedEntry | None:
        return None

    def allocate(self, shape: tuple[int, ...], dtype: str) -> DeviceBuffer:
        return self._memory.buffer(shape, dtype)

    def require_room(self, model: ModelConfig, patches: int, images: int) -> None:
        """The device refuses what it has no memory for by itself."""

    def upload(self, array: Array, dtype: str) -> DeviceBuffer:
        return self._memory.upload(array, dtype)

    def gather(self, parts: Sequence[Binding]) -> DeviceBuffer:
        return self._memory.gather(parts)

    def read(self, binding: Binding) -> Array:
        return self._memory.download(binding.address, binding.shape, binding.dtype)

    def host(self, shape: tuple[int, ...], dtype: str) -> Array:
        return self._memory.pinned(shape, dtype)

    def open(self, file: Path, engine: EngineEntry | None = None) -> "CudaSession":
        options = {
            "device_id": str(self._device_id),
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": str(int(self._graphs)),
            "use_tf32": "0",  # fp32 is what has to equal the model to 1e-4; TF32 has ten bits of mantissa
        }
        providers = [(PROVIDER, options), "CPUExecutionProvider"]
        session = OrtSession(file, session_options(), providers, ("cuda", self._device_id))
        if PROVIDER not in session.providers:
            raise IncompatibleError(
                f"{file.name}: the CUDA provider did not start, so nothing would run on the GPU "
                f"({load_libraries() or 'its libraries were found'}); check the driver with `vlm-trt doctor`, and "
                f"install the libraries: {how_to_install('cuda')}"
            )
        return CudaSession(session, self._memory, self._stream, graphs=self._graphs)


class CudaSession:
    """A graph on the GPU: everything it is bound to lies there, host tensors in staging memory at fixed addresses."""

    def __init__(self, session: OrtSession, memory: DeviceMemory, stream: int, *, graphs: bool) -> None:
        self._session, self._gpu, self._stream, self._graphs = session, memory.gpu, stream, graphs
        self._staging = Staging(memory, stream, {})
        self._numbers: dict[tuple[Bound, ...], int] = {}  # of graphs, by all shapes and addresses
        self.captured: set[int] = set()
        self.refused: VlmTrtError | None = None  # why nothing is captured any more

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
        placed_in = {name: self._staging.place(name, binding) for name, binding in inputs.items()}
        placed_out = {name: self._staging.place(name, binding) for name, binding in outputs.items()}
        with within("host_to_device"):
            self._staging.take(inputs)
            self._staging.copy_in(placed_in)
            self._gpu.synchronize(self._stream)  # ONNX Runtime has a stream of its own
        number = _UNCAPTURED
        if repeats and self._graphs:
            number = self._number((*placed_in.values(), *placed_out.values()))
        self._run(_bindings(placed_in), _bindings(placed_out), number)
        with within("device_to_host"):
            self._staging.copy_out(placed_out)
            self._gpu.synchronize(self._stream)
            self._staging.give(outputs)

    def _number(self, key: tuple[Bound, ...]) -> int:
        """Of the graph that a run captures or launches: none at the first run with its shapes and addresses."""
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers) + 1
            return _UNCAPTURED
        return self._numbers[key]

    def _run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], number: int) -> None:
        if number not in self.captured and self.refused is not None:
            number = _UNCAPTURED
        try:
            self._session.run(inputs, outputs, options=_options(number) if self._graphs else None)
        except VlmTrtError as error:
            if number == _UNCAPTURED or number in self.captured:
                raise
            self.refused = error  # a step writes where it wrote before: to do it again is to do it once
            self._session.run(inputs, outputs, options=_options(_UNCAPTURED))
        else:
            self.captured.update({number} - {_UNCAPTURED})


def _options(number: int) -> onnxruntime.RunOptions:
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _bindings(placed: Mapping[str, Bound]) -> dict[str, Binding]:
    return {name: Binding(one.address, one.shape, one.dtype, on_host=False) for name, one in placed.items()}


def require_provider() -> None:
    """
    Raises:
        IncompatibleError: this onnxruntime cannot use a GPU.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise IncompatibleError(
            "this onnxruntime has no CUDA provider; put the one for GPUs in its place: "
            f"pip uninstall -y onnxruntime && {how_to_install('cuda')}"
        )


@cache
def load_libraries() -> str:
    """What was said while the CUDA and cuDNN that were installed as Python packages were loaded; "" if all went well.

    They lie where no linker looks. An ONNX Runtime for the CPU loads nothing.
    """
    said = io.StringIO()
    with redirect_stdout(said):  # it prints, and standard output is the answer's
        onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())


def can_start() -> bool:
    """Whether this onnxruntime has the CUDA provider, and cuda-bindings and a GPU are there."""
    if PROVIDER not in onnxruntime.get_available_providers() or find_spec("cuda") is None:
        return False
    from vlm_trt.runtime.cuda import cuda_works

    return cuda_works()
