"""The ONNX Runtime backend: its sessions, and the CPU, the embedded default; CUDA is in `runtime/ort_cuda.py`.

The weights of a large fp32 graph stay in the mapped file: a load costs nothing, and processes share them.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.entries import EngineEntry, GraphEntry, PackedEntry
from vlm_trt.bundle.errors import ResourceError, VlmTrtError
from vlm_trt.bundle.host import available_bytes
from vlm_trt.bundle.picture_memory import cpu_bytes, fitting_pixels
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.bundle.precision import PUBLISHED, Precision
from vlm_trt.bundle.signature import ZERO_POINTS
from vlm_trt.bundle.store import Bundle, precision_of
from vlm_trt.runtime.backend import NUMPY_DTYPES, Array, Binding, StepShapes, bind_host, host_view
from vlm_trt.runtime.processor import has_vnni
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime

# onnxruntime takes ONNX element types where numpy has no dtype (bfloat16).
ELEMENT_TYPES = {"float32": 1, "int8": 3, "int64": 7, "float16": 10, "bfloat16": 16}
# Weights below this are packed into the kernels' own layout at load, which takes half a second at most.
PREPACK_BELOW_BYTES = 512 << 20
# From this much on, attention is put into ONNX Runtime's own form at load. Reading and changing a graph takes some
# 0.2 s, as long as a small model takes to answer.
GROUP_FROM_BYTES = 64 << 20
# Inputs whose activations share a scale where 8-bit weights have one per output. ONNX Runtime's own 32 would repeat
# that one every 32 inputs, a quarter more bytes to read in a step.
ROUNDED_TOGETHER = 128
_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "out of memory", "bfcarena")


class CpuBackend:
    """ONNX Runtime on the CPU: the embedded default, which needs no GPU."""

    name = "onnxruntime-cpu"
    # bf16 graphs have no CPU kernels; fp16 graphs run, with weights up-cast.
    # Quantized ones are taken when asked for.
    precisions: tuple[Precision, ...] = (
        *(Precision.FP32, Precision.FP16, Precision.PUBLISHED_INT4, Precision.PUBLISHED_INT4_FP16),
        *(Precision.INT8, Precision.INT8_WEIGHT, Precision.INT4),
        *(Precision.INT8_CACHE8, Precision.INT8_WEIGHT_CACHE8, Precision.INT4_CACHE8),
        *(Precision.INT8_FP16, Precision.INT8_WEIGHT_FP16, Precision.INT4_FP16, Precision.FP8, Precision.FP8_FP16),
    )
    steps = StepShapes.CLOSE
    overlaps = False  # both would want the same cores
    loads_beside = 2  # ONNX Runtime lays weights out, or looks at those that are, on one core
    fewest_scored = 0  # its products take no rows, in every type
    _held_bytes = 0  # what the largest run of pictures took: ONNX Runtime keeps it for the next

    def __init__(
        self,
        threads: int | None = None,
        *,
        prepack: bool | None = None,
        grouped: bool | None = None,
        exact: bool = False,
    ) -> None:
        """
        Args:
            threads: compute threads; None: one per core that the process may use.
            prepack: copies the weights into the kernels' own layout at load: more memory and a slower load,
                faster vision, prefill and batches. None: only the weights of small graphs and of quantized ones, whose
                kernels are tens of times slower without.
            grouped: attention as GroupQueryAttention, the same numbers in less time; None: that of large decoders.
            exact: products with 4-bit weights take activations as they are. They are rounded to 8 bits by blocks
                otherwise, which is faster, and far from what the graph says when it is to be shown equal to a model.
        """
        self.threads, self._prepack, self._grouped, self.exact = threads, prepack, grouped, exact

    def packed(self, bundle: Bundle, graph: GraphEntry) -> PackedEntry | None:
        return None

    def allocate(self, shape: tuple[int, ...], dtype: str) -> "HostBuffer":
        try:
            return HostBuffer(np.zeros(shape, dtype=NUMPY_DTYPES[dtype]), dtype)
        except MemoryError as error:
            raise explained(error, f"{shape} of {dtype}") from error

    def require_room(self, model: ModelConfig, patches: int, images: int) -> None:
        available, needed = available_bytes(), cpu_bytes(model, patches, images)
        if available is None or needed - self._held_bytes <= available:
            self._held_bytes = max(self._held_bytes, needed)
            return
        available += self._held_bytes
        instead = "use a machine with more"
        if isinstance(model.pictures, AnySize) and (pixels := fitting_pixels(model, available, images)):
            instead = f"give a max_pixels of {pixels}, or {instead}"
        raise ResourceError(
            f"{images} picture{'s' * (images > 1)} of {patches} patches take{'s' * (images == 1)} about "
            f"{needed / 2**30:.1f} GiB of memory on the CPU, where attention writes the score of every patch for every "
            f"other, and {available / 2**30:.1f} GiB are free; {instead}"
        )

    def upload(self, array: Array, dtype: str) -> "HostBuffer":
        return HostBuffer(np.ascontiguousarray(array), dtype)

    def gather(self, parts: Sequence[Binding]) -> "HostBuffer":
        return HostBuffer(np.concatenate([host_view(part) for part in parts]), parts[0].dtype)

    def read(self, binding: Binding) -> Array:
        return host_view(binding)

    def host(self, shape: tuple[int, ...], dtype: str) -> Array:
        return np.zeros(shape, dtype=NUMPY_DTYPES[dtype])

    def engines(self, bundle: Bundle, precision: Precision) -> tuple[EngineEntry, ...]:
        return ()

    def open(self, file: Path, engine: EngineEntry | None = None) -> "OrtSession":
        return OrtSession(file, self.options(file), model=_grouped(file) if self.groups(file) else None)

    def groups(self, graph: Path) -> bool:
        """Whether that graph's attention is put into ONNX Runtime's own form (`runtime/grouped_attention.py`)."""
        # Other installations than the extra `cpu` may lack the editor; the numbers are the same without.
        if graph.stem != Component.DECODER or find_spec("onnx_ir") is None:
            return False
        precision = precision_of(graph)
        if precision is not None and precision.dtype != "float32":
            return False
        return _weight_bytes(graph) >= GROUP_FROM_BYTES if self._grouped is None else self._grouped

    def options(self, graph: Path) -> onnxruntime.SessionOptions:
        """Those of a session on that graph."""
        options = session_options()
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if not self.prepacks(graph):
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.qdq_matmulnbits_block_size", str(ROUNDED_TOGETHER))
        if self.exact or _multiplies_shifted(graph):
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if _rounds_activations(graph):
            multiply_8_bits_exactly(options)
        return options

    def prepacks(self, graph: Path) -> bool:
        """Whether the weights of this graph are copied into the kernels' own layout."""
        if self._prepack is not None:
            return self._prepack
        precision = precision_of(graph)
        if precision is not None and precision.kind is not None:
            return True
        return _weight_bytes(graph) < PREPACK_BELOW_BYTES


def _weight_bytes(graph: Path) -> int:
    weights = graph.with_suffix(".weights")
    return weights.stat().st_size if weights.exists() else 0


def _rounds_activations(graph: Path) -> bool:
    """Whether it was made for products of 8 bits by 8 (`calibration/rewrite.py`)."""
    return graph.exists() and ZERO_POINTS.encode() in graph.read_bytes()


def _multiplies_shifted(graph: Path) -> bool:
    """Whether products of 4-bit weights without their zero points, which are taken away after, are large beside what
    remains (`exporter/modules/packed.py`), so that rounded activations would show."""
    precision = precision_of(graph)
    return precision is not None and precision.kind == PUBLISHED and precision.floating is not Precision.FP32


def _grouped(file: Path) -> bytes | None:
    """The graph with grouped attention, its weights still outside; None where it has none that could be."""
    import onnx_ir as ir

    from vlm_trt.runtime.grouped_attention import group_attention

    model = ir.load(file)
    return bytes(ir.serde.serialize_model(model).SerializeToString()) if group_attention(model) else None


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

    def copy_row(self, row: int, source: "HostBuffer", source_row: int, length: int) -> None:
        self.array[row, ..., :length, :] = source.array[source_row, ..., :length, :]


class OrtSession:
    """A graph loaded by ONNX Runtime. Only what changed since the last run is bound again."""

    def __init__(
        self,
        graph: Path,
        options: onnxruntime.SessionOptions,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
        device: tuple[str, int] = ("cpu", 0),
        model: bytes | None = None,
    ) -> None:
        """
        Args:
            graph: the ONNX file.
            options, providers: of the session.
            device: where all that is bound lies.
            model: taken instead of what the file holds; the weights still lie beside the file.
        """
        self._graph, self._device = graph, device
        if model is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
        try:
            self._session = onnxruntime.InferenceSession(model or str(graph), options, providers=list(providers))
        except Exception as error:
            raise explained(error, f"loading {graph}") from error
        self.providers: list[str] = self._session.get_providers()
        self._io = self._session.io_binding()
        self._bound: dict[str, Binding] = {}

    def run(
        self,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        repeats: bool = False,
        options: onnxruntime.RunOptions | None = None,
    ) -> None:
        try:
            for bindings, bind in ((inputs, self._io.bind_input), (outputs, self._io.bind_output)):
                for name, binding in bindings.items():
                    if self._changed(name, binding):
                        element_type = ELEMENT_TYPES[binding.dtype]
                        bind(name, *self._device, element_type, binding.shape, binding.address)
                        self._bound[name] = binding
            self._session.run_with_iobinding(self._io, options)
        except Exception as error:
            self._bound.clear()
            raise explained(error, f"running {self._graph.name}") from error

    def _changed(self, name: str, binding: Binding) -> bool:
        previous = self._bound.get(name)
        return previous is not binding and previous != binding


def session_options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 2  # warnings: "in-place optimization not activated" must stay visible
    # By default a half-precision table of more than 1 GiB in fp32 would be widened anew at every run.
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(1 << 40))
    # ONNX Runtime counts the machine's cores, also those that the process was not given (taskset, a container's cores):
    # threads that wait for each other's turn are many times slower than fewer ones.
    cores = len(os.sched_getaffinity(0))
    if cores < (os.cpu_count() or 1):
        options.intra_op_num_threads = cores
    return options


def multiply_8_bits_exactly(options: onnxruntime.SessionOptions) -> None:
    """Where the processor lacks VNNI, ONNX Runtime adds products of 8 bits up in 16 by default, and cuts off what is
    more: of random numbers a tenth is wrong then. With this it multiplies unsigned by unsigned, in 32 bits. It would do
    so with VNNI, too, where its own way is exact and twice as fast."""
    if not has_vnni():
        options.add_session_config_entry("session.x64quantprecision", "1")


def explained(error: Exception, doing: str) -> VlmTrtError:
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or any(sign in text.lower() for sign in _OUT_OF_MEMORY):
        return ResourceError(
            f"not enough memory for {doing}; lower --max-batch or --max-seq-tokens at export, or use a smaller "
            "precision"
        )
    return VlmTrtError(f"ONNX Runtime failed at {doing}: {text}")
