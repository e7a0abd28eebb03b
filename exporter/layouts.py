"""How checkpoint tensors become one of our weights, block by block: the arithmetic of `families.weights.Layout`."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.parts import ResamplerConnector
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.packed_weights import PackedWeight, packed_values
from vlm_trt.families.weights import Layout, Weight

# Bytes of a tensor read at once. The C library keeps blocks of this size for the next one; larger ones go back to the
# system, and their pages cost more to get again than to fill.
BLOCK_BYTES = 8 << 20
# Rows transposed at once: as many as the cache holds. All rows of a 4096×11008 matrix: 120 ms, 64 at a time: 53 ms.
_TRANSPOSED_ROWS = 64

# Elementwise: from the stored type to the final one.
Convert = Callable[[Tensor], Tensor]


class Allocate(Protocol):
    def __call__(self, shape: tuple[int, ...], /, *, dtype: torch.dtype) -> Tensor: ...


def blocks(
    weight: Weight, model: ModelConfig, checkpoint: Checkpoint, convert: Convert, allocate: Allocate = torch.empty
) -> Iterator[Tensor]:
    """The weight's values in order of its leading axis, converted, contiguous.

    COPY streams in blocks; the other layouts hold one tensor, which the shapes of a model keep below some 200 MB.

    Args:
        weight: what to make.
        model: sizes.
        checkpoint: where the values come from.
        convert: elementwise, told the stored values, or fp32 ones where the layout calculates; it refuses NaN and Inf.
        allocate: memory for a matrix of that shape and type.
    """
    if weight.layout is Layout.COPY:
        for _, block in _row_blocks(weight.keys[0], 0, weight.shape[0], checkpoint):
            yield convert(block)
        return
    if isinstance(weight, PackedWeight):
        assert checkpoint.packed is not None
        yield convert(packed_values(weight, checkpoint.packed)).contiguous()
        return
    values = _whole(weight, model, checkpoint, convert, allocate)
    assert tuple(values.shape) == weight.shape, f"{weight.name}: {tuple(values.shape)}"
    yield values.contiguous()


def _row_blocks(key: str, start: int, stop: int, checkpoint: Checkpoint) -> Iterator[tuple[int, Tensor]]:
    """The rows start…stop−1 of a stored tensor, some at a time, each with the first one's place among them."""
    row_values = math.prod(checkpoint.shape(key)[1:])
    step = max(1, BLOCK_BYTES // (4 * max(1, row_values)))
    for at in range(start, stop, step):
        yield at - start, checkpoint.unchecked_rows(key, at, min(at + step, stop))


def _whole(weight: Weight, model: ModelConfig, checkpoint: Checkpoint, convert: Convert, allocate: Allocate) -> Tensor:
    key = weight.keys[0]
    match weight.layout:
        case Layout.TRANSPOSE:
            return _transposed(key, 0, weight.shape[1], checkpoint, convert, allocate)
        case Layout.FLATTEN:
            return convert(checkpoint.read(key)).reshape(weight.shape[1], -1).t()
        case Layout.JOIN:
            return _joined(weight, checkpoint, convert, allocate)
        case Layout.RESHAPE:
            return convert(checkpoint.read(key)).reshape(weight.shape)
        case Layout.PLUS_ONE:
            return convert(checkpoint.read(key).float() + 1)
        case Layout.UNPACK_HEADS:
            return _unpacked(convert(checkpoint.read(key)), model.vision.heads, model.vision.head_dim)
        case Layout.PAIR_HEADS:
            return _paired(convert(checkpoint.read(key)), model.decoder, weight.part)
        case Layout.POSITION_GRID:
            return convert(_resized(checkpoint.read(key), weight.shape[0]))
        case Layout.ROWS:
            rows = weight.shape[-1]
            start, stop = weight.part * rows, (weight.part + 1) * rows
            if len(weight.shape) == 1:
                return convert(checkpoint.rows(key, start, stop))
            return _transposed(key, start, stop, checkpoint, convert, allocate)
        case Layout.QUERY_PROJECTION:
            return convert(_projected_queries(weight, resampler_eps(model), checkpoint))
    raise AssertionError(weight.layout)


def _transposed(
    key: str, start: int, stop: int, checkpoint: Checkpoint, convert: Convert, allocate: Allocate
) -> Tensor:
    """The rows start…stop−1 of a stored matrix as columns."""
    return _columns([(key, start, stop)], checkpoint, convert, allocate)


def _joined(weight: Weight, checkpoint: Checkpoint, convert: Convert, allocate: Allocate) -> Tensor:
    """The rows of several stored tensors one after the other, those of matrices as columns."""
    if len(weight.shape) == 1:
        return torch.cat([convert(checkpoint.read(key)) for key in weight.keys])
    return _columns([(key, 0, checkpoint.shape(key)[0]) for key in weight.keys], checkpoint, convert, allocate)


def _columns(
    parts: Sequence[tuple[str, int, int]], checkpoint: Checkpoint, convert: Convert, allocate: Allocate
) -> Tensor:
    """Rows start…stop−1 of each stored matrix, by (key, start, stop), as columns of one."""
    columns: Tensor | None = None
    width, first = sum(stop - start for _, start, stop in parts), 0
    for key, start, stop in parts:
        for at, block in _row_blocks(key, start, stop, checkpoint):
            values = convert(block)
            if columns is None:
                columns = allocate((values.shape[1], width), dtype=values.dtype)
            for row in range(0, values.shape[0], _TRANSPOSED_ROWS):
                some, to = values[row : row + _TRANSPOSED_ROWS], first + at + row
                columns[:, to : to + some.shape[0]].copy_(some.t())
        first += stop - start
    assert columns is not None, f"{parts} have no rows"
    return columns


def resampler_eps(model: ModelConfig) -> float:
    """Of the norm that the projected queries have behind them."""
    assert isinstance(model.connector, ResamplerConnector)
    return model.connector.norm_eps


def _unpacked(packed: Tensor, heads: int, head_dim: int) -> Tensor:
    """Rows [heads, 3, head_dim] → [3, heads, head_dim]: all q, all k, all v; a matrix then transposed."""
    rest = packed.shape[1:]
    ordered = packed.reshape(heads, 3, head_dim, *rest).transpose(0, 1).reshape(packed.shape)
    return ordered.t() if ordered.dim() == 2 else ordered


def _paired(packed: Tensor, decoder: DecoderConfig, rotary: int) -> Tensor:
    """Packed heads of queries, keys and values, of whose first two the first `rotary` numbers turn, pair by pair: each
    number and the one rotary/2 behind it. In another order they are as far apart as in heads that turn as a whole, and
    queries and keys have the same products; a matrix then transposed.
    """
    half, turning = decoder.head_dim // 2, rotary // 2
    still = range(rotary, decoder.head_dim)
    order = [*range(turning), *still[: half - turning], *range(turning, rotary), *still[half - turning :]]
    turned = (decoder.heads + decoder.kv_heads) * decoder.head_dim
    heads = packed[:turned].reshape(-1, decoder.head_dim, *packed.shape[1:])[:, order]
    ordered = torch.cat((heads.reshape(turned, *packed.shape[1:]), packed[turned:]))
    return ordered.t() if ordered.dim() == 2 else ordered


def _resized(table: Tensor, positions: int) -> Tensor:
    """A position table [g·g, width] on the grid of `positions`, as the original resizes it: bicubic, in fp32."""
    source, target = math.isqrt(table.shape[0]), math.isqrt(positions)
    if source == target:
        return table
    grid = table.float().reshape(1, source, source, -1).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(positions, -1)


def _projected_queries(weight: Weight, eps: float, checkpoint: Checkpoint) -> Tensor:
    """(ln_q(query) + pos_embed) · Wqᵀ + bq in fp32: [queries, hidden]."""
    hidden = weight.shape[1]
    query, position, norm_weight, norm_bias = (checkpoint.read(key).float() for key in weight.keys[:4])
    projection, bias = (checkpoint.rows(key, 0, hidden).float() for key in weight.keys[4:])
    normed = functional.layer_norm(query, (hidden,), norm_weight, norm_bias, eps)
    return functional.linear(normed + position, projection, bias)
