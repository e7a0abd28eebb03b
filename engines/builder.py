"""One graph → one serialized engine in a file.

Networks are strongly typed: the precision is in the graph. What the parser only warns of, such as an input it drops,
is an error here, because the engine would be wrong.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from vlm_trt.bundle.entries import Profile
from vlm_trt.bundle.errors import ResourceError, UnsupportedError
from vlm_trt.bundle.staging import storage_errors
from vlm_trt.bundle.tensorrt import load_backend, logger_of
from vlm_trt.engines.backend import create_network, progress_monitor, set_target
from vlm_trt.engines.memory import PeakMemory
from vlm_trt.engines.timing_cache import TimingCache


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built; None takes the builder's default."""

    backend: str  # "tensorrt" or "tensorrt-rtx"
    target: str  # compute capability, such as "sm89"
    optimization_level: int | None = None  # 0…5
    workspace_bytes: int | None = None  # device memory that kernels may use beside the weights
    weight_streaming: bool = False  # weights stay on the host and go to the device as they are needed
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Built:
    """An engine that was written to a file."""

    size: int  # bytes
    sha256: str
    layers: dict[str, int]  # layer type → how many, of the network as parsed
    weights: dict[str, int]  # dtype → bytes
    seconds: float
    peak_ram_bytes: int  # of the process, without mapped files


def build_engine(
    graph: Path,
    profiles: Sequence[Profile],
    plan: Path,
    options: BuildOptions,
    report: Callable[[float], None] = lambda _: None,
) -> Built:
    """Writes the engine of a graph.

    Args:
        graph: the ONNX file, its weights beside it.
        profiles: the shapes to build for.
        plan: the file to write; on an error it may hold a part.
        options: backend, target and settings.
        report: told how much is done, 0…1.
    Raises:
        IncompatibleError: the backend is not installed.
        UnsupportedError: the graph does not parse, or the parser or builder complains.
        ResourceError: not enough memory. StorageError: the file cannot be written.
    """
    started = perf_counter()
    trt = load_backend(options.backend)
    logger = logger_of(trt)
    logger.forget()
    builder = trt.Builder(logger.instance)
    network = create_network(trt, builder)
    with PeakMemory() as memory:
        parser = trt.OnnxParser(network, logger.instance)
        mapped = _parse(trt, parser, graph, options)
        _allow_decomposition(trt, network)
        layers, weights = described(trt, network)
        _require_parsed(graph, network, profiles, layers)
        config = builder.create_builder_config()
        cache = _configure(trt, config, options, report)
        for profile in profiles:
            config.add_optimization_profile(_profile(builder, network, profile))
        with storage_errors(plan), plan.open("wb") as file:
            writer = _Writer(trt, file)
            whole = writer.serialize(builder, network, config)
        del network, parser, mapped  # in this order: each refers to the next
    _require_clean(graph, f"{options.backend} {trt.__version__} for {options.target}", whole, logger.complaints())
    cache.store()
    return Built(writer.size, writer.sha256, layers, weights, perf_counter() - started, memory.bytes)


def _require_parsed(graph: Path, network: Any, profiles: Sequence[Profile], layers: dict[str, int]) -> None:
    """What the parser made of the graph: every axis that varies is dynamic, every cache is updated in place.

    Raises:
        UnsupportedError: it is not what the contract says.
    """
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        ranges = [profile.shapes[tensor.name] for profile in profiles if tensor.name in profile.shapes]
        for axis, extent in enumerate(tensor.shape):
            wanted = {extent for shape in ranges for extent in shape[axis]}
            if extent != -1 and wanted - {extent}:
                raise UnsupportedError(
                    f"{graph}: axis {axis} of {tensor.name} is fixed to {extent} in the network, and has to take "
                    f"{min(wanted)}…{max(wanted)}; export the checkpoint again"
                )
    inputs = (network.get_input(i).name for i in range(network.num_inputs))
    caches = sum(name.startswith("past_key_values.") for name in inputs)
    if caches != layers.get("KV_CACHE_UPDATE", 0):
        raise UnsupportedError(
            f"{graph} has {caches} caches and the network updates {layers.get('KV_CACHE_UPDATE', 0)} of them in place; "
            "the others would be copied at every step. Export the checkpoint again"
        )


def _require_clean(graph: Path, where: str, whole: bool, complaints: Sequence[str]) -> None:
    """
    Raises:
        UnsupportedError, ResourceError: there is no engine, or one with complaints.
    """
    reasons = "; ".join(complaints) or "no reason given"
    if not whole:
        raise (ResourceError if "memory" in reasons.lower() else UnsupportedError)(
            f"{graph} does not build in {where}: {reasons}"
        )
    if complaints:
        raise UnsupportedError(f"{graph} built with complaints in {where}, so the engine may be wrong: {reasons}")


def described(trt: Any, network: Any) -> tuple[dict[str, int], dict[str, int]]:
    """How many layers of each type a network has, and the bytes of its weights per dtype."""
    layers: dict[str, int] = {}
    weights: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        layers[layer.type.name] = layers.get(layer.type.name, 0) + 1
        if layer.type == trt.LayerType.CONSTANT:
            tensor = layer.get_output(0)
            _count(weights, tensor.dtype, prod(tensor.shape))
        elif layer.type == trt.LayerType.CONVOLUTION:  # the only layer of ours that holds weights itself
            layer.__class__ = trt.IConvolutionLayer
            for held in (layer.kernel, layer.bias):
                _count(weights, layer.get_output(0).dtype, held.size)
    return dict(sorted(layers.items())), dict(sorted(weights.items()))


def _count(weights: dict[str, int], dtype: Any, elements: int) -> None:
    if elements:
        name = dtype.name.lower()
        bits = {"float": 32, "int32": 32, "half": 16, "bf16": 16, "int64": 64, "int4": 4, "fp4": 4}.get(name, 8)
        weights[name] = weights.get(name, 0) + -(-elements * bits // 8)


def _parse(trt: Any, parser: Any, graph: Path, options: BuildOptions) -> Any:
    """Fills the network; returns the mapped weights, which must live as long as it.

    The parser would read external weights into memory; given their addresses in the mapped file it copies nothing.
    """
    what = f"{graph} does not parse in {options.backend} {trt.__version__}"
    try:
        model = onnx.load(graph, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise UnsupportedError(f"{what}: it is no ONNX file ({error}); export it again") from None
    mapped: dict[Path, Any] = {}
    whole = parser.load_model_proto(graph.read_bytes(), str(graph))
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if whole and place:
            file = graph.parent / place["location"]
            weights = mapped.setdefault(file, np.memmap(file, np.uint8, "r"))
            length = int(place["length"])
            address = weights[int(place.get("offset", 0)) :][:length].ctypes.data
            whole = parser.load_initializer(tensor.name, address, length)
    if not (whole and parser.parse_model_proto()):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise UnsupportedError(f"{what}: {errors or 'no reason given'}")
    return mapped


def _configure(trt: Any, config: Any, options: BuildOptions, report: Callable[[float], None]) -> TimingCache:
    set_target(trt, config, options.target)
    config.progress_monitor = progress_monitor(trt, report)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine can be inspected
    # fp32 is what has to equal the model to 1e-4; TF32, on by default, has ten bits of mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    cache = TimingCache(config, options.timing_cache)
    cache.load()
    return cache


def _allow_decomposition(trt: Any, network: Any) -> None:
    """fp32 attention has no fused kernel for more than one query and must be allowed to fall apart (fact 5)."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name not in profile.shapes:
            raise UnsupportedError(f"the graph has an input {name!r} that its contract does not know; export it again")
        made.set_shape(name, *(profile.corner(name, which) for which in range(3)))
    return made


class _Writer:
    """Writes an engine as it is serialized, so that it is never in memory as a whole a second time."""

    def __init__(self, trt: Any, file: io.BufferedWriter) -> None:
        self.size, self._digest = 0, hashlib.sha256()
        self._failure: OSError | None = None
        outer = self

        class Stream(trt.IStreamWriter):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IStreamWriter.__init__(self)

            def write(self, data: Any) -> int:
                try:  # an exception must not pass through the builder
                    return outer._write(file, data)
                except OSError as error:
                    outer._failure = error
                    return 0

        self._stream = Stream()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def serialize(self, builder: Any, network: Any, config: Any) -> bool:
        """Whether the builder made an engine and all of it was written."""
        whole = bool(builder.build_serialized_network_to_stream(network, config, self._stream))
        if self._failure is not None:
            raise self._failure
        return whole and self.size > 0

    def _write(self, file: io.BufferedWriter, data: Any) -> int:
        view = memoryview(data)
        file.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes
