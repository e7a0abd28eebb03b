"""Six ONNX operators as torch operators: eager mode computes them, tracing writes exactly one node for each.

torch has no operator that becomes `TensorScatter`, and its own translations of the others write several nodes.
Source: ONNX operator specification, opset 24.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("vlm_trt::rms_normalization", mutates_args=())
def rms_normalization(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + epsilon) · weight over the last axis; x [..., n] and weight [n] are fp32."""
    return torch.nn.functional.rms_norm(x, (x.shape[-1],), weight, epsilon)


@torch.library.custom_op("vlm_trt::rotary_embedding", mutates_args=())
def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The two halves of each head rotated; x [batch, heads, seq, dim], cos and sin [batch, seq, dim/2], fp32."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@torch.library.custom_op("vlm_trt::tensor_scatter", mutates_args=())
def tensor_scatter(past: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    """`past` with `update` at write_index along the sequence axis.

    Shapes: past [batch, heads, max_seq, dim], update [batch, heads, seq, dim], write_index [batch].
    """
    present = past.clone()
    length = update.shape[2]
    for row, start in enumerate(write_index.tolist()):
        present[row, :, start : start + length] = update[row]
    return present


@torch.library.custom_op("vlm_trt::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """softmax(query·keyᵀ·scale where mask) · value.

    Shapes: query [batch, heads, seq, dim], key and value [batch, kv_heads, window, dim], mask bool
    [batch, 1, seq, window] or None for all.
    """
    grouped = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=grouped
    )


@torch.library.custom_op("vlm_trt::gather_rows", mutates_args=())
def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """The rows `index` [batch, count, 1] of x [batch, rows, width], of each batch its own: [batch, count, width]."""
    return torch.gather(x, 1, index.expand(-1, -1, x.shape[-1]))


@torch.library.custom_op("vlm_trt::dequantize_linear", mutates_args=())
def dequantize_linear(integers: Tensor, scale: Tensor, zeros: Tensor | None, block: int) -> Tensor:
    """(integers − zeros) · scale, each row of scale and zeros for `block` rows of integers.

    Shapes: integers [inputs, outputs] int8 with values −8…7, scale and zeros [inputs/block, outputs].
    """
    shifted = integers if zeros is None else integers - zeros.repeat_interleave(block, dim=0)
    return shifted.to(scale.dtype) * scale.repeat_interleave(block, dim=0)


@rms_normalization.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return torch.empty_like(x)


@rotary_embedding.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)  # as cat makes it, however x lies


@tensor_scatter.register_fake
def _(past: Tensor, update: Tensor, write_index: Tensor) -> Tensor:
    return torch.empty_like(past)


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    return torch.empty_like(query)


@gather_rows.register_fake
def _(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(*index.shape[:-1], x.shape[-1])


@dequantize_linear.register_fake
def _(integers: Tensor, scale: Tensor, zeros: Tensor | None, block: int) -> Tensor:
    return torch.empty_like(integers, dtype=scale.dtype)


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export(custom_translation_table=…)`."""
    from onnxscript.onnx_opset import opset24 as op  # tracing needs it; computing, as verification does, does not

    def write_rms_normalization(x: Any, weight: Any, epsilon: float) -> Any:
        return op.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)

    def write_rotary_embedding(x: Any, cos: Any, sin: Any) -> Any:
        return op.RotaryEmbedding(x, cos, sin)

    def write_tensor_scatter(past: Any, update: Any, write_index: Any) -> Any:
        return op.TensorScatter(past, update, write_index)

    def write_attention(query: Any, key: Any, value: Any, mask: Any, scale: float) -> Any:
        # The three further outputs (present key and value, scores) stay unused and are removed by the optimizer.
        output, _, _, _ = op.Attention(query, key, value, mask, scale=scale)
        return output

    def write_gather_rows(x: Any, index: Any) -> Any:
        return op.GatherND(x, index, batch_dims=1)

    def write_dequantize_linear(integers: Any, scale: Any, zeros: Any, block: int) -> Any:
        return op.DequantizeLinear(integers, scale, zeros, axis=0, block_size=block)

    ours = torch.ops.vlm_trt
    return {
        ours.rms_normalization.default: write_rms_normalization,
        ours.rotary_embedding.default: write_rotary_embedding,
        ours.tensor_scatter.default: write_tensor_scatter,
        ours.attention.default: write_attention,
        ours.gather_rows.default: write_gather_rows,
        ours.dequantize_linear.default: write_dequantize_linear,
    }
