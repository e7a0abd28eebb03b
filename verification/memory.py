"""What a verification takes, asked before it starts: the system would kill it in the middle."""

import os
from functools import cache
from math import prod

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig, within
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.host import available_bytes
from vlm_trt.bundle.needs import Needs
from vlm_trt.bundle.precision import DTYPE_BYTES, Precision
from vlm_trt.families.family import Family
from vlm_trt.probing.part_size import PART_BYTES
from vlm_trt.verification.passages import PICTURES, SHORT, WHOLE, positions

# Graphs with more weights than this, in fp32, are run in parts.
IN_PARTS_ABOVE_BYTES = 4 << 30
# Python with torch and ONNX Runtime, and what they keep; of large models a second process traces meanwhile.
_BASE_BYTES, _TRACING_BYTES = 1 << 30, 800 << 20
# Seconds to start and trace, and what a core computes and reads a second. The official shape in fp16, on two cores
# without AVX-512: 1,205 s estimated, 1,152 s measured (benchmarks/results/verify_full_size.json).
_START_SECONDS = 15
_FLOPS_PER_CORE = 3.8e10
_BYTES_PER_SECOND = 2e8  # of weights in fp32: made for the audit and for torch, loaded by ONNX Runtime


def runs_in_parts(family: Family, model: ModelConfig) -> bool:
    """Whether the model's graphs are too large to be loaded whole for a verification."""
    return 4 * _values(family, model) > IN_PARTS_ABOVE_BYTES


def require_memory(family: Family, model: ModelConfig, limits: Limits, precision: Precision) -> None:
    """
    Raises:
        ResourceError: a verification needs more than the host has free.
    """
    available = available_bytes()
    needed = needed_bytes(family, model, limits, precision)
    if available is not None and needed > available:
        raise ResourceError(
            f"verifying needs about {needed / 2**30:.1f} GiB of memory (the largest layer in fp32, with the cache of "
            f"{limits.max_batch} sequences) and {available / 2**30:.1f} GiB are free; verify on a host with more memory"
        )


def verification_needs(family: Family, model: ModelConfig, limits: Limits, precision: Precision) -> Needs:
    """What `plan` says of a verification on the CPU.

    Args:
        family: the model's.
        model: its sizes.
        limits: of the bundle.
        precision: of the float graphs that are verified.
    """
    extent = SHORT if runs_in_parts(family, model) else WHOLE
    twice = precision is Precision.FP16  # as stored, and as it runs here, on one picture; bf16 runs as stored alone
    seen, read = PICTURES + limits.max_images + 1 + twice, positions(model, limits, extent)
    looks = 2 + twice  # the model, the graphs
    towers = 2 * _values(family, model, Component.VISION_ENCODER) * within(model, limits).most_patches * seen
    decoder = (
        2 * (_values(family, model, Component.DECODER) - model.decoder.vocab_size * model.decoder.hidden) * read * 2
    )
    seconds = (
        _START_SECONDS
        + (towers + decoder) / (_FLOPS_PER_CORE * len(os.sched_getaffinity(0)))
        + 4 * _values(family, model) * looks / _BYTES_PER_SECOND
    )
    return Needs(ram_bytes=needed_bytes(family, model, limits, precision), seconds=seconds)


def needed_bytes(family: Family, model: ModelConfig, limits: Limits, precision: Precision) -> int:
    """The model's largest weight as it is made, or the graphs: whole where they are small, else their largest part."""
    largest = max(count for _, count in _weights(family, model))
    stored = DTYPE_BYTES[precision.dtype]
    cache = 2 * limits.max_batch * model.decoder.kv_heads * limits.max_seq_tokens * model.decoder.head_dim * stored
    if not runs_in_parts(family, model):
        whole = (4 + stored) * _values(family, model) + cache * model.decoder.layers
        return _BASE_BYTES + max(whole, 4 * 2 * largest)
    part = max((4 + stored) * largest, PART_BYTES * (4 + stored) // 4 + cache)
    return _BASE_BYTES + _TRACING_BYTES + max(part, 4 * 2 * largest)


def _values(family: Family, model: ModelConfig, component: Component | None = None) -> int:
    """Weights of the whole model, or of one component."""
    return sum(count for of, count in _weights(family, model) if component in (None, of))


@cache
def _weights(family: Family, model: ModelConfig) -> tuple[tuple[Component, int], ...]:
    """Component and number of values of each weight; `plan` asks for hundreds of settings of one model."""
    return tuple((weight.component, prod(weight.shape)) for weight in family.weight_map(model).weights)
