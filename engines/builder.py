"""One graph → one serialized engine in a file.

Networks are strongly typed: the precision is in the graph. What the parser only warns of, such as an input it drops,
is an error here, because the engine would be wrong.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bundle.entries import Profile
from bundle.errors import ResourceError, UnsupportedError
from bundle.staging import storage_errors
from engines.backend import Logger, create_network, load_backend, progress_monitor, set_target
from engines.timing_cache import TimingCache


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
    peak_ram_bytes: int  # of the whole process


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
    logger = Logger(trt)
    builder = trt.Builder(logger.instance)
    network = create_network(trt, builder)
    parser = trt.OnnxParser(network, logger.instance)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise UnsupportedError(f"{graph} does not parse in {options.backend} {trt.__version__}: {errors}")
    _allow_decomposition(trt, network)
    layers, weights = described(trt, network)
    config = builder.create_builder_config()
    cache = _configure(trt, config, options, report)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, network, profile))
    with storage_errors(plan), plan.open("wb") as file:
        writer = _Writer(trt, file)
        whole = writer.serialize(builder, network, config)
    complaints = logger.complaints()
    what = f"{graph} does not build in {options.backend} {trt.__version__} for {options.target}"
    if not whole:
        message = f"{what}: {'; '.join(complaints) or 'no reason given'}"
        raise (ResourceError if "memory" in message.lower() else UnsupportedError)(message)
    if complaints:
        raise UnsupportedError(f"{graph} built with complaints, so the engine may be wrong: {'; '.join(complaints)}")
    cache.store()
    return Built(writer.size, writer.sha256, layers, weights, perf_counter() - started, peak_ram_bytes())


def described(trt: Any, network: Any) -> tuple[dict[str, int], dict[str, int]]:
    """How many layers of each type a network has, and the bytes of its weights per dtype."""
    layers: dict[str, int] = {}
    weights: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = layer.type.name
        layers[name] = layers.get(name, 0) + 1
        if layer.type == trt.LayerType.CONSTANT:
            tensor = layer.get_output(0)
            count = 1
            for extent in tensor.shape:
                count *= extent
            dtype = tensor.dtype.name.lower()
            weights[dtype] = weights.get(dtype, 0) + -(-count * _bits(tensor.dtype) // 8)
    return dict(sorted(layers.items())), dict(sorted(weights.items()))


def _bits(dtype: Any) -> int:
    size = getattr(dtype, "itemsize", None)
    return {"FLOAT": 32, "INT32": 32, "HALF": 16, "BF16": 16, "INT64": 64, "INT4": 4, "FP4": 4}.get(
        dtype.name, 8 * int(size or 1)
    )


def peak_ram_bytes() -> int:
    """The most memory that this process has held at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def _configure(trt: Any, config: Any, options: BuildOptions, report: Callable[[float], None]) -> TimingCache:
    set_target(trt, config, options.target)
    config.progress_monitor = progress_monitor(trt, report)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine can be inspected
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
