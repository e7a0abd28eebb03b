"""What a decode step of the official shape costs on a GPU, computed from sizes and from the figures in `GIVEN`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.make_checkpoint import write_configs
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision
from vlm_trt.commands.weight_sizes import weight_bytes
from vlm_trt.engines.gpus import Gpu, gpu_named
from vlm_trt.engines.plan import Plan, plan
from vlm_trt.families.qwen_vl.config import read_config


@dataclass(frozen=True)
class Given:
    """A figure that is not computed here."""

    value: float  # count, seconds
    what: str
    source: str  # Markdown; `SOURCES` has the addresses


SMALL_KERNELS = Given(
    1037, "kernels of a step beside the matrix products", "counted with onnxruntime-gpu 1.31.1 over stand-ins for CUDA"
)
SMALL_KERNEL_SECONDS = Given(
    1.2e-6, "the GPU's time for one of them", "estimate: [1.1–1.3 µs][add] for the sum of two short vectors in a graph"
)
HOST_SECONDS = Given(
    4.3e-3, "ONNX Runtime's and Python's time for a step, uncaptured", "measured over the stand-ins: 3.9–4.7 ms"
)
LAUNCH_SECONDS = Given(2e-6, "the driver's time for a launch", "estimate, low: [4–6 µs][launch] have been published")
REPLAY_SECONDS = Given(1e-5, "launching a captured step", "estimate: [3.5–8 µs][replay] of the host for short graphs")
PYTHON_SECONDS = Given(2.5e-4, "Python around a run", "measured on a CPU")
SAMPLE_SECONDS = Given(1.75e-3, "top-p 0.3 of one row in numpy, at best", "measured, vocabulary 151,936")
SAMPLE_SECONDS_AT_WORST = Given(3.5e-3, "the same, at worst", "measured")
REDUCE_SECONDS = Given(
    6.6e-6, "an all-reduce, without its hops and bytes", "[NCCL's own model][nccl]; [6 µs][reduce] in all on two H100"
)
GIVEN = (
    SMALL_KERNELS, SMALL_KERNEL_SECONDS, HOST_SECONDS, LAUNCH_SECONDS, REPLAY_SECONDS, PYTHON_SECONDS,
    SAMPLE_SECONDS, SAMPLE_SECONDS_AT_WORST, REDUCE_SECONDS,
)  # fmt: skip
SOURCES = {
    "add": "https://github.com/pytorch/pytorch/issues/161104",
    "launch": "https://susun-blog.com/blog/pegainfer-3-cuda-graph",
    "replay": "https://cuda.juliagpu.org/dev/usage/graphs/",
    "nccl": "https://github.com/NVIDIA/nccl/blob/master/src/graph/tuning.cc",
    "reduce": "https://github.com/NVIDIA/nccl/issues/1259",
}


@dataclass(frozen=True)
class Link:
    """How GPUs of a machine reach each other. Source: NCCL's model (a hop, and what its low-latency protocol moves)."""

    name: str
    hop_seconds: float
    bandwidth: float  # bytes per second


@dataclass(frozen=True)
class Card:
    """A GPU and its links."""

    gpu: Gpu
    link: Link

    @property
    def products_bound(self) -> float:
        """Sequences from which on products cost more than reading their fp16 weights: two operations a weight each."""
        return self.gpu.fp16_flops * DTYPE_BYTES[Precision.FP16.dtype] / (2 * self.gpu.bandwidth)


# PCIe 4.0 ×16 moves 32 GB/s one way, half of it flags of the low-latency protocol.
CARDS = (
    Card(gpu_named("L4"), Link("PCIe 4.0", 1.0e-6, 16e9)),
    Card(gpu_named("A100-80GB"), Link("NVLink 3", 0.6e-6, 87.7e9)),
    Card(gpu_named("H100-80GB"), Link("NVLink 4", 0.6e-6, 141e9)),
    Card(gpu_named("H200"), Link("NVLink 4", 0.6e-6, 141e9)),
    Card(gpu_named("B200"), Link("NVLink 5", 0.6e-6, 282e9)),
)


def card_named(name: str) -> Card:
    return next(card for card in CARDS if card.gpu.name == name)


@cache
def official() -> ModelConfig:
    """The sizes of Qwen-VL."""
    with TemporaryDirectory() as name:
        write_configs(Path(name), "FULL")
        return read_config(Path(name))


@cache
def weights_of(precision: Precision) -> Mapping[Component, int]:
    return weight_bytes(official(), precision)


@dataclass(frozen=True)
class Step:
    """A decode step of `sequences`, each with a full cache of `cached_tokens`, by `ranks` GPUs in tensor parallel."""

    card: Card
    sequences: int
    cached_tokens: int
    ranks: int = 1
    precision: Precision = Precision.FP16

    @property
    def plan(self) -> Plan:
        """Of one GPU."""
        limits = Limits(max_seq_tokens=self.cached_tokens, max_batch=self.sequences, max_images=4)
        return plan(official(), limits, self.precision, weights_of(self.precision))

    @property
    def weight_bytes(self) -> int:
        """That the step reads, all ranks together."""
        one = self.plan
        return one.step_bytes - one.kv_bytes

    @property
    def weights_ms(self) -> float:
        return 1000 * self.weight_bytes / self.ranks / self.card.gpu.bandwidth

    @property
    def cache_ms(self) -> float:
        return 1000 * self.plan.kv_bytes / self.ranks / self.card.gpu.bandwidth

    @property
    def floor_ms(self) -> float:
        return self.weights_ms + self.cache_ms

    @property
    def reduces(self) -> int:
        """All-reduces of the step: behind attention and behind the MLP of every layer."""
        return 2 * official().decoder.layers if self.ranks > 1 else 0

    @property
    def reduces_ms(self) -> float:
        """A ring: each rank passes its share on 2·(ranks − 1) times."""
        hops, link = 2 * (self.ranks - 1), self.card.link
        size = self.sequences * official().decoder.hidden * DTYPE_BYTES[self.precision.dtype]
        one = REDUCE_SECONDS.value + hops * link.hop_seconds + hops / self.ranks * size / link.bandwidth
        return 1000 * self.reduces * one

    @property
    def device_ms(self) -> float:
        """Small kernels are as many on every rank: what they cost is not divided."""
        return self.floor_ms + small_kernels_ms() + self.reduces_ms

    @property
    def bare_ms(self) -> float:
        """Captured, if small kernels took no time."""
        return self.captured_ms - small_kernels_ms()

    @property
    def captured_ms(self) -> float:
        """As one CUDA graph."""
        return self.device_ms + 1000 * (REPLAY_SECONDS.value + PYTHON_SECONDS.value)

    @property
    def uncaptured_ms(self) -> float:
        """Behind Python, host and GPU work side by side: the slower one counts."""
        launches = SMALL_KERNELS.value + products() + self.reduces
        host_ms = 1000 * (HOST_SECONDS.value - PYTHON_SECONDS.value + launches * LAUNCH_SECONDS.value)
        return 1000 * PYTHON_SECONDS.value + max(self.device_ms, host_ms)

    def sampled_ms(self, sample: Given) -> float:
        """Captured, and every row sampled by the host after it."""
        return self.captured_ms + 1000 * self.sequences * sample.value

    @property
    def per_second(self) -> float:
        """Tokens of all sequences, captured."""
        return 1000 * self.sequences / self.captured_ms

    @property
    def replicas(self) -> "Step":
        """What each of `ranks` GPUs does where all of them have the whole model, and share the sequences."""
        return replace(self, ranks=1, sequences=math.ceil(self.sequences / self.ranks))

    @property
    def fits(self) -> bool:
        return self.sequences <= self.most_sequences

    @property
    def most_sequences(self) -> int:
        """That memory holds."""
        most, memory = 0, self.card.gpu.memory_bytes
        for bit in reversed(range(20)):
            if replace(self, sequences=most + (1 << bit)).first_rank_bytes <= memory:
                most += 1 << bit
        return most

    @property
    def first_rank_bytes(self) -> float:
        """Memory of the first rank, which has the vision encoder and the resampler as well."""
        plan, others = self.plan, 1 - 1 / self.ranks
        return plan.vram_bytes - others * (plan.kv_bytes + plan.weight_bytes[Component.DECODER])


def small_kernels_ms() -> float:
    return 1000 * SMALL_KERNELS.value * SMALL_KERNEL_SECONDS.value


def products() -> int:
    """Matrix products of a step: five of a layer, and the head."""
    return 5 * official().decoder.layers + 1
