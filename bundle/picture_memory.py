"""What a run of the vision tower takes beside its weights, above all where every patch's scores of every other one are
written to memory.

ONNX Runtime's CPU does so, of all heads of a layer at once; so does TensorRT in fp32, whose attention is fused in half
precision only.
"""

from math import isqrt

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import CropTower, Tower, WindowTower

_FP32_BYTES = 4
# Of a tower's widest tensors, how many ONNX Runtime's CPU has at its peak. Source: from 4,096 patches on the estimate
# is 1.00 to 1.07 times the measured peak in fp32, 1.01 to 1.36 times in fp16 (benchmarks/results/picture_memory.json).
_CPU_COPIES = 4


def score_bytes(model: ModelConfig, patches: int, images: int = 1) -> int:
    """Scores of the layer that has most, for images of so many patches in one run, in fp32."""
    return images * model.vision.heads * patches * _seen(model.vision, patches) * _FP32_BYTES


def _seen(tower: Tower, patches: int) -> int:
    """How many patches one attends to at most."""
    match tower:
        case CropTower():
            return tower.patches
        case WindowTower() if not tower.full_layers:
            return min(patches, tower.window**2)
    return patches


def activation_bytes(model: ModelConfig, patches: int, images: int = 1) -> int:
    """What a layer's MLP holds at once, in fp32: input, output and both halves of its own."""
    return images * patches * (4 * model.vision.width + model.vision.mlp_width) * _FP32_BYTES


def cpu_bytes(model: ModelConfig, patches: int, images: int = 1) -> int:
    """The peak of a run on ONNX Runtime's CPU."""
    return score_bytes(model, patches, images) + _CPU_COPIES * activation_bytes(model, patches, images)


def fitting_pixels(model: ModelConfig, available: int, images: int = 1) -> int:
    """The largest area of a picture of any size that a run on the CPU takes no more than that for; 0: none."""
    tower = model.any_size
    square, linear = images * tower.heads * _FP32_BYTES, _CPU_COPIES * activation_bytes(model, 1, images)
    patches = max(0, isqrt(linear**2 + 4 * square * available) - linear) // (2 * square)
    return patches // tower.token_side**2 * tower.token_pixels**2
