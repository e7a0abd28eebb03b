"""The decoder's layers: attention over the static cache and an MLP, put together as a block says.

Norms, rotary embedding and the residual stream are fp32 whatever the precision; products and cache are not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_trt.bundle.parts import Block, ParallelBlock, SandwichBlock, SerialBlock
from vlm_trt.exporter.modules.activations import ACTIVATIONS
from vlm_trt.exporter.modules.layers import LayerNorm, Linear, RMSNorm, merge_heads, split_heads
from vlm_trt.exporter.modules.onnx_operators import attention, rotary_embedding, tensor_scatter


@dataclass(frozen=True)
class Step:
    """What all layers of one step share."""

    cos: Tensor  # [batch, seq, rotary/2]
    sin: Tensor
    query_scale: Tensor | None  # [batch, 1, seq, 1]
    mask: Tensor  # bool [batch, 1, seq, window]
    near_mask: Tensor | None  # the same for layers that see a window of positions
    write_index: Tensor  # [batch]
    window: int  # how much of the cache this step looks at


class Attention(nn.Module):
    """Queries of all heads, keys and values of a few, written into the cache and read from it."""

    def __init__(self, block: Block, hidden: int, dtype: torch.dtype, *, bias: bool, output_bias: bool = False) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = block.heads, block.kv_heads, block.head_dim
        self.scale, self.dtype = block.attention_scale, dtype
        self.qkv = Linear(hidden, (block.heads + 2 * block.kv_heads) * block.head_dim, dtype, bias=bias)
        self.output = Linear(block.heads * block.head_dim, hidden, dtype, bias=output_bias)

    def forward(self, x: Tensor, step: Step, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed, dim = self.qkv(x), self.head_dim
        query = split_heads(packed, self.heads, 0, dim).float()
        key = split_heads(packed, self.kv_heads, self.heads * dim, dim).float()
        value = split_heads(packed, self.kv_heads, (self.heads + self.kv_heads) * dim, dim)
        query = rotary_embedding(query, step.cos, step.sin)
        if step.query_scale is not None:
            query = query * step.query_scale
        key = rotary_embedding(key, step.cos, step.sin)
        present_key = tensor_scatter(past_key, key.to(self.dtype), step.write_index)
        present_value = tensor_scatter(past_value, value, step.write_index)
        seen_key, seen_value = present_key[:, :, : step.window], present_value[:, :, : step.window]
        context = self.attend(query.to(self.dtype), seen_key, seen_value, step)
        return self.output(merge_heads(context)), present_key, present_value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, step: Step) -> Tensor:
        return attention(query, key, value, step.mask, self.scale)  # type: ignore[no-any-return]


class CappedAttention(Attention):
    """With scores that are capped before the mask, written out: TensorRT's Attention has no cap."""

    def __init__(self, block: SandwichBlock, hidden: int, dtype: torch.dtype, *, near: bool) -> None:
        super().__init__(block, hidden, dtype, bias=False)
        self.cap, self.near = block.score_cap, near

    def attend(self, query: Tensor, key: Tensor, value: Tensor, step: Step) -> Tensor:
        mask = step.near_mask if self.near else step.mask
        assert mask is not None
        batch, heads, seq, dim = query.shape
        group = heads // self.kv_heads
        # Queries that share keys and values as rows of one product: nothing of the cache is repeated.
        rows = query.reshape(batch, self.kv_heads, group * seq, dim)
        scores = (rows @ key.transpose(-1, -2)).float()
        scores = torch.tanh(scores * (self.scale / self.cap)) * self.cap
        scores = scores.reshape(batch, self.kv_heads, group, seq, key.shape[2])
        scores = torch.where(mask[:, :, None], scores, -1e30)
        weights = torch.softmax(scores, dim=-1).to(self.dtype)
        context = weights.reshape(batch, self.kv_heads, group * seq, key.shape[2]) @ value
        return context.reshape(batch, heads, seq, dim)


class MLP(nn.Module):
    def __init__(self, block: Block, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(hidden, block.mlp_width, dtype, bias=False)
        self.gate = Linear(hidden, block.mlp_width, dtype, bias=False)
        self.down = Linear(block.mlp_width, hidden, dtype, bias=False)
        self.activation = ACTIVATIONS[block.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.activation(self.gate(x)))  # type: ignore[no-any-return]


class PlainMLP(nn.Module):
    def __init__(self, block: ParallelBlock, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(hidden, block.mlp_width, dtype, bias=True)
        self.down = Linear(block.mlp_width, hidden, dtype, bias=True)
        self.activation = ACTIVATIONS[block.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class SerialLayer(nn.Module):
    def __init__(self, block: SerialBlock, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(hidden, block.norm_eps, dtype)
        self.attention = Attention(block, hidden, dtype, bias=block.qkv_bias)
        self.mlp_norm = RMSNorm(hidden, block.norm_eps, dtype)
        self.mlp = MLP(block, hidden, dtype)

    def forward(
        self, residual: Tensor, step: Step, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        context, key, value = self.attention(self.attention_norm(residual), step, past_key, past_value)
        residual = residual + context.float()
        return residual + self.mlp(self.mlp_norm(residual)).float(), key, value


class SandwichLayer(nn.Module):
    def __init__(self, block: SandwichBlock, hidden: int, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        near = index in block.window_layers
        self.attention_norm = RMSNorm(hidden, block.norm_eps, dtype)
        self.attention = CappedAttention(block, hidden, dtype, near=near)
        self.attention_post_norm = RMSNorm(hidden, block.norm_eps, torch.float32)
        self.mlp_norm = RMSNorm(hidden, block.norm_eps, dtype)
        self.mlp = MLP(block, hidden, dtype)
        self.mlp_post_norm = RMSNorm(hidden, block.norm_eps, torch.float32)

    def forward(
        self, residual: Tensor, step: Step, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        context, key, value = self.attention(self.attention_norm(residual), step, past_key, past_value)
        residual = residual + self.attention_post_norm(context)
        return residual + self.mlp_post_norm(self.mlp(self.mlp_norm(residual))), key, value


class ParallelLayer(nn.Module):
    def __init__(self, block: ParallelBlock, hidden: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = LayerNorm(hidden, block.norm_eps, dtype)
        self.attention = Attention(block, hidden, dtype, bias=True, output_bias=True)
        self.mlp = PlainMLP(block, hidden, dtype)

    def forward(
        self, residual: Tensor, step: Step, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.norm(residual)
        context, key, value = self.attention(normed, step, past_key, past_value)
        return residual + context.float() + self.mlp(normed).float(), key, value


def decoder_layer(block: Block, hidden: int, dtype: torch.dtype, index: int) -> nn.Module:
    """The layer of that number."""
    match block:
        case SerialBlock():
            return SerialLayer(block, hidden, dtype)
        case SandwichBlock():
            return SandwichLayer(block, hidden, dtype, index)
        case ParallelBlock():
            return ParallelLayer(block, hidden, dtype)
