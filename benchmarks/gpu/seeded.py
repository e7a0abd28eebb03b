"""Weights of the official shape made where they are used, from a seed per name: 19 GB that nobody has to carry.

Values are those of `benchmarks.make_checkpoint`: matrices N(0, 1/fan-in), those onto the residual stream smaller with
depth, norms 1 ± 0.1, all rounded to bfloat16, as a checkpoint stores them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.modules.build import TORCH_DTYPES
from vlm_trt.exporter.weight_stream import plan_weights
from vlm_trt.families.weights import Weight

_ONTO_RESIDUAL = ("output.weight", "down.weight")


class Seeded:
    """Gives weights by name, in fp32, on a device; the same at every call on the same kind of device."""

    def __init__(self, model: ModelConfig, device: str) -> None:
        self._layers, self._device = model.decoder.layers, device

    def __call__(self, weights: Sequence[Weight]) -> Mapping[str, Tensor]:
        return {weight.name: self._value(weight) for weight in weights}

    def write(self, weights: Sequence[Weight], precision: Precision, file: Path) -> None:
        """The weight file of one component, as the exporter would place its tensors."""
        places, size = plan_weights(weights, precision)
        with file.open("wb") as target:
            target.truncate(size)
            for weight, place in zip(weights, places, strict=True):
                dtype = next(torch_dtype for one, torch_dtype in TORCH_DTYPES.items() if one.dtype == place.dtype)
                values = self._value(weight).to(dtype).cpu().contiguous()
                target.seek(place.offset)
                target.write(values.view(torch.uint8).numpy().data if values.ndim else bytes(values))

    def _value(self, weight: Weight) -> Tensor:
        random = torch.Generator(self._device).manual_seed(crc32(f"{weight.component}/{weight.name}".encode()))
        values = torch.randn(weight.shape, generator=random, device=self._device)
        if len(weight.shape) == 1:
            values = values.mul_(0.1).add_(1.0 if weight.name.endswith("weight") else 0.0)
        elif weight.name != "embedding.weight":
            scale = 1 / math.sqrt(_fan_in(weight))
            onto_residual = weight.name.endswith(_ONTO_RESIDUAL)
            values = values.mul_(scale / math.sqrt(2 * self._layers) if onto_residual else scale)
        return values.bfloat16().float()


def _fan_in(weight: Weight) -> int:
    """How many products each output sums: linear layers hold [in, out], the head and the patches [out, …]."""
    first, *rest = weight.shape
    return math.prod(rest) if weight.name == "lm_head.weight" or len(rest) > 1 else first
