"""How checkpoint tensors become one of our weights, block by block: the arithmetic of `models.weights.Layout`."""

import math
from collections.abc import Iterator

from torch import Tensor
from torch.nn import functional

from bundle.config import ModelConfig
from exporter.checkpoint import Checkpoint
from models.weights import Layout, Weight

# Source rows read at once when a tensor passes through unchanged.
BLOCK_BYTES = 16 << 20


def blocks(weight: Weight, model: ModelConfig, checkpoint: Checkpoint) -> Iterator[Tensor]:
    """The weight's values in order of its leading axis, in the stored type or fp32.

    COPY streams in blocks; the other layouts hold one tensor, which the shapes of a model keep below some 200 MB.
    """
    if weight.layout is Layout.COPY:
        yield from _copied(weight, checkpoint)
        return
    values = _whole(weight, model, checkpoint)
    assert tuple(values.shape) == weight.shape, f"{weight.name}: {tuple(values.shape)}"
    yield values


def _copied(weight: Weight, checkpoint: Checkpoint) -> Iterator[Tensor]:
    rows = weight.shape[0]
    step = max(1, BLOCK_BYTES // (4 * max(1, math.prod(weight.shape[1:]))))
    for start in range(0, rows, step):
        yield checkpoint.rows(weight.keys[0], start, min(start + step, rows))


def _whole(weight: Weight, model: ModelConfig, checkpoint: Checkpoint) -> Tensor:
    match weight.layout:
        case Layout.TRANSPOSE:
            return checkpoint.read(weight.keys[0]).t()
        case Layout.UNPACK_HEADS:
            return _unpacked(checkpoint.read(weight.keys[0]), model.vision.heads, model.vision.head_dim)
        case Layout.POSITION_GRID:
            return _resized(checkpoint.read(weight.keys[0]), weight.shape[0])
        case Layout.ROWS:
            return _part(weight, checkpoint)
        case Layout.QUERY_PROJECTION:
            return _projected_queries(weight, model.resampler.norm_eps, checkpoint)
    raise AssertionError(weight.layout)


def _unpacked(packed: Tensor, heads: int, head_dim: int) -> Tensor:
    """Rows [heads, 3, head_dim] → [3, heads, head_dim]: all q, all k, all v; a matrix then transposed."""
    rest = packed.shape[1:]
    ordered = packed.reshape(heads, 3, head_dim, *rest).transpose(0, 1).reshape(packed.shape)
    return ordered.t() if ordered.dim() == 2 else ordered


def _resized(table: Tensor, positions: int) -> Tensor:
    """A position table [g·g, width] on the grid of `positions`, as the original resizes it: bicubic, in fp32."""
    source, target = math.isqrt(table.shape[0]), math.isqrt(positions)
    if source == target:
        return table
    grid = table.float().reshape(1, source, source, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(positions, -1)


def _part(weight: Weight, checkpoint: Checkpoint) -> Tensor:
    """One third of the rows of a packed projection; a matrix then transposed."""
    rows = weight.shape[-1]
    values = checkpoint.rows(weight.keys[0], weight.part * rows, (weight.part + 1) * rows)
    return values.t() if values.dim() == 2 else values


def _projected_queries(weight: Weight, eps: float, checkpoint: Checkpoint) -> Tensor:
    """(ln_q(query) + pos_embed) · Wqᵀ + bq in fp32: [queries, hidden]."""
    hidden = weight.shape[1]
    query, position, norm_weight, norm_bias = (checkpoint.read(key).float() for key in weight.keys[:4])
    projection, bias = (checkpoint.rows(key, 0, hidden).float() for key in weight.keys[4:])
    normed = functional.layer_norm(query, (hidden,), norm_weight, norm_bias, eps)
    return functional.linear(normed + position, projection, bias)
