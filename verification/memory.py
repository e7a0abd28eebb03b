"""Whether a verification fits in memory, asked before it starts: the system would kill it in the middle."""

from math import prod

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.host import available_bytes
from vlm_trt.bundle.signature import Precision
from vlm_trt.families.family import Family


def require_memory(family: Family, model: ModelConfig, precision: Precision) -> None:
    """
    Raises:
        ResourceError: the model in fp32 and the graphs need more than the host has free.
    """
    available = available_bytes()
    needed = needed_bytes(family, model, precision)
    if available is not None and needed > available:
        raise ResourceError(
            f"verifying needs about {needed / 2**30:.1f} GiB of memory (the model in fp32 beside the {precision} "
            f"graphs) and {available / 2**30:.1f} GiB are free; verify on a host with more memory"
        )


def needed_bytes(family: Family, model: ModelConfig, precision: Precision) -> int:
    """The torch modules in fp32; ONNX Runtime maps fp32 graphs and up-casts fp16 ones on the CPU."""
    parameters = sum(prod(weight.shape) for weight in family.weight_map(model).weights)
    return 4 * parameters * (1 if precision is Precision.FP32 else 2)
