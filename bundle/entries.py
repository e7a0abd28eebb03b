"""What a manifest lists: files, graphs, and engines with the profiles they were built for."""

from dataclasses import dataclass
from typing import Annotated

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.fields import SHARE
from vlm_trt.bundle.precision import Precision

Range = tuple[int, int, int]  # min, opt, max


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    path: str  # relative, with forward slashes
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class GraphEntry:
    """One graph: the ONNX file and the weights it refers to, if it has any."""

    component: Component
    precision: Precision
    opset: int
    graph: FileEntry
    weights: FileEntry | None
    calibration: FileEntry | None = None  # of quantized ones: all that made them of the float ones

    @property
    def files(self) -> tuple[FileEntry, ...]:
        return tuple(file for file in (self.graph, self.weights, self.calibration) if file is not None)

    @property
    def weight_bytes(self) -> int:
        return 0 if self.weights is None else self.weights.size

    @property
    def identity(self) -> str:
        """What a verdict is about: changes with any byte of the files."""
        return ":".join([self.component, *(file.sha256 for file in self.files)])


@dataclass(frozen=True)
class PackedEntry:
    """A graph as ONNX Runtime computes it on one kind of CPU, its weights in the kernels' layout, to be mapped."""

    component: Component
    precision: Precision
    made_of: str  # identity of the graph
    runtime: str  # version of ONNX Runtime
    processor: str  # what its kernels are chosen by
    graph: FileEntry
    weights: FileEntry

    @property
    def files(self) -> tuple[FileEntry, FileEntry]:
        return (self.graph, self.weights)


@dataclass(frozen=True)
class Quantization:
    """How quantized graphs were made: what decides whether they may answer, and by which questions that is told."""

    precision: Precision
    floats: tuple[str, ...]  # identities of the graphs they were made from, sorted
    max_drop: Annotated[float, SHARE]  # of any task's score that they may cost
    samples: str | None  # sha256 of what was calibrated on; None where nothing was
    pictures: tuple[str, ...]  # sha256 of pictures that were calibrated on, which may not judge; sorted


@dataclass(frozen=True)
class Profile:
    """One optimization profile: tensor → (min, opt, max) of every axis."""

    name: str
    shapes: dict[str, tuple[Range, ...]]

    def corner(self, tensor: str, which: int) -> tuple[int, ...]:
        """The tensor's shape at the minimum (0), optimum (1) or maximum (2)."""
        return tuple(axis[which] for axis in self.shapes[tensor])


@dataclass(frozen=True)
class EngineEntry:
    """One serialized engine: what it was built from, with what, for which GPU."""

    component: Component
    precision: Precision
    backend: str  # "tensorrt" or "tensorrt-rtx"
    version: str  # of the backend; an engine runs on exactly this one
    target: str  # compute capability, such as "sm89"
    gpu: str | None  # name and driver of the GPU it was built on, where there was one
    plan: FileEntry
    graph: str  # identity of the graph it was built from
    limits: Limits  # at most the bundle's
    profiles: tuple[Profile, ...]
    layers: dict[str, int]  # layer type → how many, of the network as parsed
    weights: dict[str, int]  # dtype → bytes of the network's weights
    weight_streaming: bool
    seconds: float  # building took
    peak_ram_bytes: int
    created: str

    @property
    def files(self) -> tuple[FileEntry]:
        return (self.plan,)

    @property
    def identity(self) -> str:
        """What a verdict is about: changes with any byte of the plan."""
        return f"{self.component}:{self.plan.sha256}"

    @property
    def variant(self) -> str:
        """The folder of the engines that belong together: `engines/<variant>/<component>.plan`."""
        return self.plan.path.split("/")[1]
