"""What an export, a verification, a build and a deployment take, computed from sizes alone, before any work.

Each constant has its source beside it; docs/planning.md compares the estimates with measured runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig, within
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.needs import Needs
from vlm_trt.bundle.picture_memory import activation_bytes, cpu_bytes, score_bytes
from vlm_trt.bundle.precision import DTYPE_BYTES, PUBLISHED, Precision
from vlm_trt.engines.gpus import Gpu

GIB = 2**30
# Export, benchmarks/results/plan_accuracy.json and export_full_size.json: torch and the tracer, and a second process
# that traces where the weights are large; seconds to start, per traced layer, and bytes written per second.
EXPORT_RAM_BYTES, TRACED_APART_RAM_BYTES = int(0.55 * GIB), int(1.2 * GIB)
TRACED_APART_ABOVE_BYTES = 2 * GIB
EXPORT_START_SECONDS, TRACE_SECONDS_PER_LAYER, EXPORT_BYTES_PER_SECOND = 8.0, 0.5, 200e6
# Build with TensorRT-RTX, plan_accuracy.json: copies of the weights that the builder holds at its peak, and itself;
# bytes of an engine per byte of weights; seconds per layer, and weights it gets through in a second.
BUILD_COPIES, BUILD_BASE_BYTES, BUILD_LEAST_BYTES = 1.95, int(0.05 * GIB), int(0.25 * GIB)
# The builder holds 4-bit weights unpacked too: 2.38 copies of a decoder of 5.2 GB.
INT4_BUILD_COPIES = 2.4
ENGINE_SIZE = 1.03
BUILD_SECONDS_PER_LAYER, BUILD_BYTES_PER_SECOND = 0.2, 100e6
# Device memory beside weights and cache: the CUDA context, kernels, and the buffers between them.
DEVICE_BASE_BYTES = int(0.6 * GIB)
# Answering on the CPU: Python with ONNX Runtime; copies of the weights that a loaded bundle has. Those in fp32 are
# mapped, in fp16 widened, in 8 and 4 bits packed anew (docs/families.md, LLaVA-1.5 7B: 9.9 of 6.9 GiB, 7.6 of 4.1 GiB).
CPU_BASE_BYTES = int(0.25 * GIB)
CPU_COPIES = {None: 1.0, "int8": 1.45, "int8-weight": 1.45, "int4": 1.9, PUBLISHED: 1.9, "fp8": 1.45}
CPU_WIDENED = 2.0


class Stage(StrEnum):
    """What may be planned: each takes something else, often on another machine."""

    EXPORT = "export"  # with the graphs that are quantized, if any
    VERIFY = "verify"
    BUILD = "build"
    RUN = "run"  # on a device
    CPU = "cpu"  # answering on the host, with ONNX Runtime


@dataclass(frozen=True)
class Machine:
    """What there is to work with; None: not known, nothing is refused for it."""

    ram_bytes: int | None = None
    disk_bytes: int | None = None
    gpu: Gpu | None = None
    vram_bytes: int | None = None  # in place of what the GPU's data sheet says

    @property
    def device_bytes(self) -> int | None:
        """Memory of the device."""
        return self.gpu.memory_bytes if self.vram_bytes is None and self.gpu is not None else self.vram_bytes


@dataclass(frozen=True)
class Plan:
    """The estimate for one precision and one set of limits."""

    precision: Precision
    limits: Limits
    weight_bytes: dict[Component, int]
    kv_bytes_per_sequence: int
    activation_bytes: int
    patches: int  # of the largest picture
    score_bytes: int  # of a run of such pictures, where attention writes them to memory
    needs: Mapping[Stage, Needs]  # of the host; running needs a device
    step_bytes: int  # that a decode step of the whole batch must move

    @property
    def weights(self) -> int:
        return sum(self.weight_bytes.values())

    @property
    def kv_bytes(self) -> int:
        return self.kv_bytes_per_sequence * self.limits.max_batch

    @property
    def vram_bytes(self) -> int:
        return self.weights + self.kv_bytes + self.activation_bytes + DEVICE_BASE_BYTES

    def floor_ms(self, gpu: Gpu) -> float:
        """A decode step takes at least as long as its bytes take to come from memory."""
        return self.step_bytes / gpu.bandwidth * 1000


_UNKNOWN = Needs()


def plan(
    model: ModelConfig,
    limits: Limits,
    precision: Precision,
    weight_bytes: Mapping[Component, int],
    verification: Needs = _UNKNOWN,
    float_bytes: int | None = None,
) -> Plan:
    """The estimate.

    Args:
        model: sizes of the model.
        limits: of cache, batch and pictures.
        precision: of weights and cache.
        weight_bytes: of each graph in that precision.
        verification: what it takes.
        float_bytes: weights of the graphs that are exported where these are quantized from them; None: these are.
    """
    decoder = model.decoder
    position = 2 * decoder.layers * decoder.kv_heads * decoder.head_dim * DTYPE_BYTES[precision.cache_dtype]
    kv = position * limits.max_seq_tokens
    # The sampler makes three tensors as large as the logits: scaled ones, and probabilities of both.
    logits = limits.max_batch * decoder.vocab_size * 4
    # Widest at once: the gated MLP of a whole prompt, or the MLP of a run of pictures.
    prompt = limits.max_seq_tokens * (4 * decoder.hidden + 2 * decoder.mlp_width) * 4
    patches = within(model, limits).most_patches
    pictures = activation_bytes(model, patches, limits.max_images)
    scores = score_bytes(model, patches, limits.max_images)
    # TensorRT fuses attention in half precision only.
    on_device = pictures + (scores if precision.floating is Precision.FP32 else 0)
    activations = max(prompt, on_device, 3 * logits) + logits
    layers = decoder.layers + model.vision.layers + 1
    seen = cpu_bytes(model, patches, limits.max_images)
    needs = {
        Stage.EXPORT: _export(sum(weight_bytes.values()), float_bytes, layers),
        Stage.VERIFY: verification,
        Stage.BUILD: _build(weight_bytes, precision, layers),
        Stage.CPU: _cpu(sum(weight_bytes.values()), precision, kv * limits.max_batch + max(prompt, seen)),
    }
    return Plan(
        precision=precision,
        limits=limits,
        weight_bytes=dict(weight_bytes),
        kv_bytes_per_sequence=kv,
        activation_bytes=activations,
        patches=patches,
        score_bytes=scores,
        needs=needs,
        step_bytes=weight_bytes[Component.DECODER] - decoder.unread_bytes(precision) + kv * limits.max_batch,
    )


def _export(weight_bytes: int, float_bytes: int | None, layers: int) -> Needs:
    """Of the float graphs; quantized ones lie beside them, and what making them takes depends on the samples."""
    exported = weight_bytes if float_bytes is None else float_bytes
    return Needs(
        ram_bytes=EXPORT_RAM_BYTES if exported < TRACED_APART_ABOVE_BYTES else TRACED_APART_RAM_BYTES,
        disk_bytes=exported + (0 if float_bytes is None else weight_bytes),
        seconds=EXPORT_START_SECONDS + TRACE_SECONDS_PER_LAYER * layers + exported / EXPORT_BYTES_PER_SECOND,
    )


def _build(weight_bytes: Mapping[Component, int], precision: Precision, layers: int) -> Needs:
    """Of all engines."""
    total = sum(weight_bytes.values())
    return Needs(
        ram_bytes=build_ram_bytes(max(weight_bytes.values()), precision),
        disk_bytes=engine_bytes(total),
        seconds=total / BUILD_BYTES_PER_SECOND + BUILD_SECONDS_PER_LAYER * layers,
    )


def _cpu(weight_bytes: int, precision: Precision, run_bytes: int) -> Needs:
    """Of a loaded bundle that answers.

    Args:
        weight_bytes: of all graphs.
        precision: theirs.
        run_bytes: the cache, and what the widest run takes.
    """
    copies = CPU_WIDENED if precision is Precision.FP16 else CPU_COPIES[precision.kind]
    return Needs(ram_bytes=CPU_BASE_BYTES + int(copies * weight_bytes) + run_bytes)


def build_ram_bytes(weight_bytes: int, precision: Precision) -> int:
    """Memory that building the engine of a graph with that many bytes of weights takes."""
    copies = INT4_BUILD_COPIES if precision.kind in ("int4", PUBLISHED) else BUILD_COPIES
    return max(int(copies * weight_bytes) + BUILD_BASE_BYTES, BUILD_LEAST_BYTES)


def engine_bytes(weight_bytes: int) -> int:
    """Disk that engines with that many bytes of weights take."""
    return int(ENGINE_SIZE * weight_bytes)


_DOING = {
    Stage.EXPORT: "exporting",
    Stage.VERIFY: "verifying",
    Stage.BUILD: "building",
    Stage.CPU: "answering on the CPU",
}


def shortfalls(asked: Plan, machine: Machine, stages: Sequence[Stage] = tuple(Stage)) -> list[str]:
    """What does not fit, each as a sentence with the numbers.

    Args:
        asked: the plan.
        machine: what there is.
        stages: those that have to fit.
    """
    found = []
    needs = {stage: asked.needs[stage] for stage in stages if stage in asked.needs}
    for stage, one in needs.items():
        if machine.ram_bytes is not None and one.ram_bytes > machine.ram_bytes:
            among = _among(asked) if stage is Stage.CPU else ""
            found.append(
                f"{_DOING[stage]} needs {_gib(one.ram_bytes)} of memory{among} and the host has "
                f"{_gib(machine.ram_bytes)}"
            )
    if Stage.CPU in stages and asked.precision.floating is Precision.BF16:
        found.append("bf16 does not run on the CPU")
    disk = sum(one.disk_bytes for one in needs.values())
    if machine.disk_bytes is not None and disk > machine.disk_bytes:
        what = " and ".join(
            word for stage, word in ((Stage.EXPORT, "graphs"), (Stage.BUILD, "engines")) if stage in needs
        )
        found.append(f"{what} need {_gib(disk)} of disk and {_gib(machine.disk_bytes)} are free")
    device = "device" if machine.gpu is None else machine.gpu.name
    if Stage.RUN in stages and machine.device_bytes is not None and asked.vram_bytes > machine.device_bytes:
        among = _among(asked) if asked.precision.floating is Precision.FP32 else ""
        found.append(
            f"running needs {_gib(asked.vram_bytes)} of device memory{among} and the {device} has "
            f"{_gib(machine.device_bytes)}"
        )
    if {Stage.RUN, Stage.BUILD} & set(stages) and machine.gpu is not None:
        capability = machine.gpu.lacks(asked.precision)
        found += [f"{asked.precision} needs {capability} and the {device} is {machine.gpu.target}"] * bool(capability)
    return found


def _among(asked: Plan) -> str:
    """How much of it the largest pictures take, where that is much."""
    if asked.score_bytes < GIB:
        return ""
    return f" ({_gib(asked.score_bytes)} of it for attention within pictures of {asked.patches} patches)"


def require_fit(
    asked: Plan, others: Iterable[tuple[str, Plan]], machine: Machine, stages: Sequence[Stage] = tuple(Stage)
) -> None:
    """
    Args:
        asked: the plan as asked for.
        others: settings as they are typed, with their plans: what could be chosen instead, the nearest first.
        machine: what there is.
        stages: those that have to fit.
    Raises:
        ResourceError: it does not fit; the message names the first setting that does.
    """
    found = shortfalls(asked, machine, stages)
    if not found:
        return
    fitting = next((setting for setting, other in others if not shortfalls(other, machine, stages)), None)
    instead = f"{fitting} would fit" if fitting else "No other setting fits either: a larger machine is needed"
    raise ResourceError(f"{'; '.join(found)}. {instead}")


def _gib(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
