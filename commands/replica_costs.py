"""What the work of a replica takes: from a profile's file, or from floors of a GPU."""

from pathlib import Path

from vlm_trt.bundle.config import ModelConfig, within
from vlm_trt.bundle.precision import Precision
from vlm_trt.engines.gpus import Gpu
from vlm_trt.engines.plan import Plan
from vlm_trt.fleet.costs import CHUNK_TOKENS, Costs, Curve, Measured, of_profile
from vlm_trt.profiling.profile_file import from_file
from vlm_trt.profiling.work import Cost, costs
from vlm_trt.profiling.workload import Workload

_CHUNKS = (1, *range(64, CHUNK_TOKENS + 1, 64))  # tokens of a chunk of which the floor is computed


def measured(path: Path) -> Measured:
    """
    Raises:
        UsageError: the file cannot be read, or is no profile of this version.
    """
    making = "vlm-trt profile BUNDLE --batch 1,2,4 -o FOLDER"
    return from_file(path, of_profile, "does not say what a replica takes", making)


def of_floors(model: ModelConfig, plan: Plan, gpu: Gpu, times: float) -> Costs:
    """Every step as so many times the least that its bytes and operations take on that GPU.

    Pictures are as large as they may be, a decode step reads the whole cache of the sequences that run, and what the
    host does takes nothing.
    """
    narrowed, limits = within(model, plan.limits), plan.limits
    together = min(narrowed.most_tiles, limits.max_images)

    def cost(stage: str, batch: int = 1, tokens: int = 1) -> float:
        asked = Workload(images=1, new_tokens=2, batch=batch)
        every = costs(model, plan.weight_bytes, plan.precision, asked, tokens, together, narrowed.most_patches)
        return times * _floor_ms(every[stage], gpu, plan.precision)

    batches = [1 << power for power in range(limits.max_batch.bit_length()) if 1 << power < limits.max_batch]
    runs = -(-narrowed.most_tiles // together)
    return Costs(
        picture_ms=runs * (cost("vision_encoder") + cost("resampler")),
        chunk_ms=Curve(tuple((float(tokens), cost("prefill", tokens=tokens)) for tokens in _CHUNKS)),
        step_ms=Curve(
            tuple(
                # In the middle of an answer of two tokens the cache has one more.
                (float(batch), cost("decode_step", batch, limits.max_seq_tokens - 1))
                for batch in (*batches, limits.max_batch)
            )
        ),
    )


def _floor_ms(cost: Cost, gpu: Gpu, precision: Precision) -> float:
    """Milliseconds; tensor cores do twice as many operations in 8 bits as in 16, and half as many in fp32's range."""
    eight_bits = precision.kind in ("int8", "fp8")
    faster = 2.0 if eight_bits else 0.5 if precision.floating is Precision.FP32 else 1.0
    return 1000 * max(cost.bytes / gpu.bandwidth, cost.operations / (faster * gpu.fp16_flops))
