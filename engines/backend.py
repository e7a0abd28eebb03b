"""The two builders behind one door: TensorRT and TensorRT-RTX differ in little more than name, and here it is."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError
from vlm_trt.bundle.host import query_gpus
from vlm_trt.bundle.installation import how_to_install
from vlm_trt.bundle.tensorrt import MODULES


@dataclass(frozen=True)
class Device:
    """The GPU of this machine."""

    target: str  # its compute capability, such as "sm89"
    description: str  # name and driver


def default_backend() -> str:
    """The builder that is installed; TensorRT where both are.

    Raises:
        IncompatibleError: neither is.
    """
    for name, module in MODULES.items():
        if find_spec(module) is not None:
            return name
    raise IncompatibleError(
        "neither TensorRT nor TensorRT-RTX is installed; install one: "
        + ", or ".join(how_to_install("build", name) for name in MODULES)
    )


def device() -> Device | None:
    """The first GPU, asked of nvidia-smi; None where that does not answer."""
    for capability, name, driver in query_gpus("compute_cap", "name", "driver_version")[:1]:
        return Device(f"sm{capability.replace('.', '')}", f"{name}, driver {driver}")
    return None


def targets(trt: Any) -> tuple[str, ...]:
    """The compute capabilities that can be built for on any machine: those that TensorRT-RTX names."""
    capabilities = getattr(trt, "ComputeCapability", None)
    names = getattr(capabilities, "__members__", {})
    return tuple(name.lower() for name in names if name.startswith("SM"))


def require_target(trt: Any, backend: str, target: str, here: Device | None) -> str:
    """The compute capability that `target` means, such as "sm89".

    Raises:
        IncompatibleError: nothing can be built for it here.
    """
    known = targets(trt)
    can = f"it builds for {', '.join(known)} on any machine, and " if known else ""
    if target == "native":
        if here is None:
            instead = f"name one, --target {','.join(known)}" if known else "build on the GPU that the engine is for"
            raise IncompatibleError(f"--target native means the GPU of this machine, and none answers here; {instead}")
        return here.target
    if target in known or (here is not None and target == here.target):
        return target
    raise IncompatibleError(
        f"{backend} {trt.__version__} cannot build for {target} from here ({can}for its own GPU with --target native); "
        "build on that GPU"
    )


def set_target(trt: Any, config: Any, target: str) -> None:
    """Builds for that compute capability; TensorRT, which knows no targets, builds for its own GPU."""
    capability = getattr(getattr(trt, "ComputeCapability", None), target.upper(), None)
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)


def create_network(trt: Any, builder: Any) -> Any:
    """An empty, strongly typed network: the precision is in the graph."""
    flags = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # 10.x: asked for; later: always
    return builder.create_network(0 if flags is None else 1 << int(flags))


def progress_monitor(trt: Any, report: Callable[[float], None]) -> Any:
    """A monitor for a builder config that reports how much of the build is done, 0…1, never less than before.

    The builder's phases nest: each takes the place of one step of its parent.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._spans: dict[str, tuple[float, float]] = {}  # phase → where it starts, share of one step
            self._at: dict[str, int] = {}  # phase → steps done
            self._reached = 0.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            start, width = 0.0, 1.0
            if parent in self._spans:
                begun, step = self._spans[parent]
                start, width = begun + step * self._at[parent], step
            self._spans[name], self._at[name] = (start, width / max(1, steps)), 0

        def phase_finish(self, name: str) -> None:
            self._spans.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self._spans:
                self._at[name] = step + 1
                start, width = self._spans[name]
                reached = min(1.0, start + width * (step + 1))
                if reached >= self._reached + 0.005:  # thousands of steps; a person sees percents
                    self._reached = reached
                    report(reached)
            return True

    return Monitor()
