"""What an export, a build and a deployment take, computed from sizes alone, before any work.

Each constant has its source beside it; docs/planning.md compares the estimates with measured runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bundle.config import Limits, ModelConfig
from bundle.errors import ResourceError
from bundle.signature import DTYPE_BYTES, Component, Precision
from engines.gpus import Gpu

GIB = 2**30
# Export, benchmarks/results/export_full_size.json: 1.2 GiB whatever the size; hashing and writing at 120 MB/s.
EXPORT_RAM_BYTES = int(1.2 * GIB)
EXPORT_BYTES_PER_SECOND = 120e6
TRACE_SECONDS_PER_LAYER = 2.0
# Build with TensorRT-RTX, benchmarks/results/build.json: copies of the weights that the builder holds at its peak,
# beside itself; bytes of an engine per byte of weights; weights it gets through in a second.
BUILD_COPIES = 1.4
BUILD_BASE_BYTES = int(0.2 * GIB)
ENGINE_SIZE = 1.04
BUILD_BYTES_PER_SECOND = 60e6
BUILD_SECONDS_PER_LAYER = 0.5
# Device memory beside weights and cache: the CUDA context, kernels, and the buffers between them.
DEVICE_BASE_BYTES = int(0.6 * GIB)


@dataclass(frozen=True)
class Machine:
    """What there is to work with; None: not known, nothing is refused for it."""

    ram_bytes: int | None = None
    disk_bytes: int | None = None
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Plan:
    """The estimate for one precision and one set of limits."""

    precision: Precision
    limits: Limits
    weight_bytes: dict[Component, int]
    kv_bytes_per_sequence: int
    activation_bytes: int
    export_seconds: float
    build_ram_bytes: int
    build_seconds: float
    engine_bytes: int
    step_bytes: int  # that a decode step of the whole batch must move

    @property
    def weights(self) -> int:
        return sum(self.weight_bytes.values())

    @property
    def kv_bytes(self) -> int:
        return self.kv_bytes_per_sequence * self.limits.max_batch

    @property
    def export_ram_bytes(self) -> int:
        return EXPORT_RAM_BYTES

    @property
    def disk_bytes(self) -> int:
        """Graphs and engines side by side."""
        return self.weights + self.engine_bytes

    @property
    def vram_bytes(self) -> int:
        return self.weights + self.kv_bytes + self.activation_bytes + DEVICE_BASE_BYTES

    def floor_ms(self, gpu: Gpu) -> float:
        """A decode step takes at least as long as its bytes take to come from memory."""
        return self.step_bytes / gpu.bandwidth * 1000


def plan(model: ModelConfig, limits: Limits, precision: Precision, weight_bytes: Mapping[Component, int]) -> Plan:
    """The estimate.

    Args:
        model: sizes of the model.
        limits: of cache, batch and pictures.
        precision: of weights and cache.
        weight_bytes: of each graph in that precision.
    """
    decoder, vision = model.decoder, model.vision
    size = DTYPE_BYTES[precision.dtype]
    position = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * size
    kv = position * limits.max_seq_tokens
    # Widest at once: the gated MLP of a whole prompt, or the MLP of a run of pictures; input, output and both halves.
    prompt = limits.max_seq_tokens * (4 * decoder.hidden + 2 * decoder.mlp_width) * 4
    pictures = limits.max_images * vision.patches * (4 * vision.width + vision.mlp_width) * 4
    logits = limits.max_batch * decoder.vocab_size * 4
    layers = decoder.layers + vision.layers + 1
    total, largest = sum(weight_bytes.values()), max(weight_bytes.values())
    embedding = decoder.vocab_size * decoder.hidden * size  # a step reads one row of it per sequence
    return Plan(
        precision=precision,
        limits=limits,
        weight_bytes=dict(weight_bytes),
        kv_bytes_per_sequence=kv,
        activation_bytes=max(prompt, pictures) + logits,
        export_seconds=max(total / EXPORT_BYTES_PER_SECOND, TRACE_SECONDS_PER_LAYER * layers),
        build_ram_bytes=int(BUILD_COPIES * largest) + BUILD_BASE_BYTES,
        build_seconds=total / BUILD_BYTES_PER_SECOND + BUILD_SECONDS_PER_LAYER * layers,
        engine_bytes=int(ENGINE_SIZE * total),
        step_bytes=weight_bytes[Component.DECODER] - embedding + kv * limits.max_batch,
    )


def shortfalls(asked: Plan, machine: Machine) -> list[str]:
    """What does not fit, each as a sentence with the numbers."""
    found = []
    if machine.ram_bytes is not None:
        needed = max(asked.export_ram_bytes, asked.build_ram_bytes)
        if needed > machine.ram_bytes:
            found.append(f"building needs {_gib(needed)} of memory and the host has {_gib(machine.ram_bytes)}")
    if machine.disk_bytes is not None and asked.disk_bytes > machine.disk_bytes:
        found.append(
            f"graphs and engines need {_gib(asked.disk_bytes)} of disk and {_gib(machine.disk_bytes)} are free"
        )
    if machine.gpu is not None and asked.vram_bytes > machine.gpu.memory_bytes:
        found.append(
            f"running needs {_gib(asked.vram_bytes)} of device memory and a {machine.gpu.name} has "
            f"{_gib(machine.gpu.memory_bytes)}"
        )
    return found


def require_fit(asked: Plan, others: list[tuple[str, Plan]], machine: Machine) -> None:
    """
    Args:
        asked: the plan as asked for.
        others: settings as they are typed, with their plans: what could be chosen instead, the nearest first.
        machine: what there is.
    Raises:
        ResourceError: it does not fit; the message names the first setting that does.
    """
    found = shortfalls(asked, machine)
    if not found:
        return
    fitting = next((setting for setting, other in others if not shortfalls(other, machine)), None)
    instead = f"{fitting} would fit" if fitting else "no smaller setting fits either: a larger machine is needed"
    raise ResourceError(f"{'; '.join(found)}. {instead[0].upper()}{instead[1:]}")


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB"
