"""One graph → one serialized engine, with TensorRT or TensorRT-RTX: the Python modules differ in little more than name.

Networks are strongly typed: the precision is in the graph. What the parser only warns of, such as an input it drops,
is an error here, because the engine would be wrong.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from bundle.entries import Profile
from bundle.errors import IncompatibleError, ResourceError, UnsupportedError

BACKENDS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Said of every int64 input of ours; they are bound as int64.
_HARMLESS = ("Make sure input", "has Int64 binding")


def load_backend(name: str) -> Any:
    """The backend's Python module.

    Raises:
        IncompatibleError: it is not installed.
    """
    try:
        return import_module(BACKENDS[name])
    except ImportError as error:
        raise IncompatibleError(
            f"{name} cannot be imported ({error}); install the extra: pip install 'vlm-trt[{name}]'"
        ) from None


def build_engine(graph: Path, profiles: Sequence[Profile], target: str, backend: str = "tensorrt-rtx") -> bytes:
    """The serialized engine of a graph.

    Args:
        graph: the ONNX file, its weights beside it.
        profiles: the shapes to build for.
        target: "native" for the GPU here, or a compute capability such as "sm89" (TensorRT-RTX only).
        backend: "tensorrt" or "tensorrt-rtx".
    Raises:
        IncompatibleError: the backend is not installed or cannot build for that target.
        UnsupportedError: the graph does not parse, or the parser or builder complains.
        ResourceError: not enough memory.
    """
    trt = load_backend(backend)
    logger = _Logger(trt)
    builder = trt.Builder(logger.instance)
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 10.x: asked for; later: always
    network = builder.create_network(0 if flags is None else 1 << int(flags))
    parser = trt.OnnxParser(network, logger.instance)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise UnsupportedError(f"{graph} does not parse in {backend} {trt.__version__}: {errors}")
    _allow_decomposition(trt, network)
    config = builder.create_builder_config()
    _set_target(trt, config, target, backend)
    for profile in profiles:
        config.add_optimization_profile(_profile(builder, network, profile))
    engine = builder.build_serialized_network(network, config)
    complaints = logger.complaints()
    if engine is None:
        message = f"{graph} does not build in {backend} {trt.__version__}: {'; '.join(complaints) or 'no reason given'}"
        raise (ResourceError if "memory" in message.lower() else UnsupportedError)(message)
    if complaints:
        raise UnsupportedError(f"{graph} built with complaints, so the engine may be wrong: {'; '.join(complaints)}")
    return bytes(engine)


def _allow_decomposition(trt: Any, network: Any) -> None:
    """fp32 attention has no fused kernel for more than one query and must be allowed to fall apart (fact 5)."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT and layer.get_input(0).dtype == trt.float32:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _set_target(trt: Any, config: Any, target: str, backend: str) -> None:
    if target == "native":
        return
    capability = getattr(getattr(trt, "ComputeCapability", None), target.upper(), None)
    if capability is None:
        raise IncompatibleError(
            f"{backend} {trt.__version__} cannot build for {target} from here; build on that GPU with --target native"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


def _profile(builder: Any, network: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        name = network.get_input(index).name
        if name not in profile.shapes:
            raise UnsupportedError(f"the graph has an input {name!r} that its contract does not know; export it again")
        made.set_shape(name, *(profile.corner(name, which) for which in range(3)))
    return made


class _Logger:
    """Collects what the parser and the builder say at warning level or above."""

    def __init__(self, trt: Any) -> None:
        lines: list[str] = []

        class Collector(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity <= trt.ILogger.Severity.WARNING:
                    lines.append(message.strip())

        self.instance = Collector()
        self._lines = lines

    def complaints(self) -> list[str]:
        return [line for line in self._lines if not all(part in line for part in _HARMLESS)]
