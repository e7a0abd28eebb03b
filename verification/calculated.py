"""The weights that an export calculates, few but for merged adapters: equal to the last digit on one processor, and
nearly so on another.

Sums of products are added in another order, or with fewer roundings, by another processor or another number of threads.
What any of them may make is a range around the exact value; what lies outside was changed.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.layouts import resampler_eps
from vlm_trt.exporter.modules.build import TORCH_DTYPES
from vlm_trt.exporter.weight_stream import converted
from vlm_trt.families.weights import Layout, Weight

CALCULATED = (Layout.QUERY_PROJECTION, Layout.POSITION_GRID)
_ROUNDING = 2.0**-24  # of fp32, relative


def may_be(found: Tensor, weight: Weight, model: ModelConfig, checkpoint: Checkpoint) -> bool:
    """Whether these are values that fp32 arithmetic can have made of the checkpoint's tensors.

    Args:
        found: the weight as stored, of its type.
        weight: of a layout that is calculated, or made of tensors that adapters change.
        model: sizes.
        checkpoint: where it comes from.
    """
    if weight.layout not in CALCULATED:
        least, most = (_side(weight, found.dtype, model, checkpoint.reopened(side)) for side in (-1, 1))
        return bool(((least <= found) & (found <= most)).all())
    if weight.layout is Layout.QUERY_PROJECTION:
        exact, error = _queries(weight, resampler_eps(model), checkpoint)
    else:
        exact, error = _positions(weight, checkpoint)
    least, most = ((exact + side * error).float().to(found.dtype) for side in (-1, 1))
    return bool(((least <= found) & (found <= most)).all())


def _side(weight: Weight, dtype: torch.dtype, model: ModelConfig, checkpoint: Checkpoint) -> Tensor:
    """The least or the most that merged adapters may make of a weight, as it is stored."""
    names = {one: precision.dtype for precision, one in TORCH_DTYPES.items()}
    return torch.cat([block.clone() for block in converted(weight, names[dtype], model, checkpoint)]).view(weight.shape)


def _queries(weight: Weight, eps: float, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """The projected queries [queries, hidden] in fp64, and what fp32 may be off.

    Rounding errors of n sums in any order grow with √n and the size of the summands; four times that was never seen.
    """
    hidden = weight.shape[1]
    query, position, norm_weight, norm_bias = (checkpoint.read(key).double() for key in weight.keys[:4])
    projection, bias = (checkpoint.rows(key, 0, hidden).double() for key in weight.keys[4:])
    taken = functional.layer_norm(query, (hidden,), norm_weight, norm_bias, eps) + position
    exact = functional.linear(taken, projection, bias)
    summands = functional.linear(taken.square(), projection.square(), bias.square()).sqrt()
    return exact, 4 * _ROUNDING * math.sqrt(hidden) * (summands + exact.abs())


def _positions(weight: Weight, checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """The resized table [positions, width] in fp64, and what fp32 may be off: in place and 16 products."""
    table = checkpoint.read(weight.keys[0]).double()
    source, target = math.isqrt(table.shape[0]), math.isqrt(weight.shape[0])
    if source == target:
        return table, torch.zeros(1, dtype=torch.float64)
    grid = table.reshape(1, source, source, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    exact = resized.permute(0, 2, 3, 1).reshape(weight.shape)
    return exact, 4 * _ROUNDING * (16 + source) * table.abs().amax(dim=0)
