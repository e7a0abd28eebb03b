"""The decoder with its static KV cache: one forward for prefill and decode, the graph contract of the bundle.

The residual stream, norms, rotary embedding and logits are fp32 whatever the precision; products and cache are not.
"""

import torch
from torch import Tensor, nn

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.exporter.modules.layers import Linear, RMSNorm, merge_heads, split_heads
from vlm_trt.exporter.modules.onnx_operators import attention, rotary_embedding, tensor_scatter


class Step:
    """What all layers of one step share.

    Shapes: cos, sin [batch, seq, rotary/2]; query_scale [batch, 1, seq, 1] or None; mask bool
    [batch, 1, seq, window]; write_index [batch]; window: how much of the cache this step looks at.
    """

    def __init__(
        self, cos: Tensor, sin: Tensor, query_scale: Tensor | None, mask: Tensor, write_index: Tensor, window: int
    ) -> None:
        self.cos, self.sin, self.query_scale = cos, sin, query_scale
        self.mask, self.write_index, self.window = mask, write_index, window


class Attention(nn.Module):
    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = decoder.heads, decoder.kv_heads, decoder.head_dim
        self.dtype = dtype
        outputs = (decoder.heads + 2 * decoder.kv_heads) * decoder.head_dim
        self.qkv = Linear(decoder.hidden, outputs, dtype, bias=True)
        self.output = Linear(decoder.heads * decoder.head_dim, decoder.hidden, dtype, bias=False)

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
        context = attention(
            query.to(self.dtype),
            present_key[:, :, : step.window],
            present_value[:, :, : step.window],
            step.mask,
            dim**-0.5,
        )
        return self.output(merge_heads(context)), present_key, present_value


class MLP(nn.Module):
    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(decoder.hidden, decoder.mlp_width, dtype, bias=False)
        self.gate = Linear(decoder.hidden, decoder.mlp_width, dtype, bias=False)
        self.down = Linear(decoder.mlp_width, decoder.hidden, dtype, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * nn.functional.silu(self.gate(x)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(decoder.hidden, decoder.norm_eps, dtype)
        self.attention = Attention(decoder, dtype)
        self.mlp_norm = RMSNorm(decoder.hidden, decoder.norm_eps, dtype)
        self.mlp = MLP(decoder, dtype)

    def forward(
        self, residual: Tensor, step: Step, past_key: Tensor, past_value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        context, key, value = self.attention(self.attention_norm(residual), step, past_key, past_value)
        residual = residual + context.float()
        return residual + self.mlp(self.mlp_norm(residual)).float(), key, value


class Table(nn.Module):
    """A [vocabulary, hidden] matrix: the embedding, or the head as stored."""

    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(decoder.vocab_size, decoder.hidden, dtype=dtype), False)


class Decoder(nn.Module):
    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.embedding = Table(decoder, dtype)
        self.layers = nn.ModuleList(Layer(decoder, dtype) for _ in range(decoder.layers))
        self.final_norm = RMSNorm(decoder.hidden, decoder.norm_eps, dtype)
        self.lm_head = Table(decoder, dtype)

    def forward(
        self,
        input_ids: Tensor,
        image_features: Tensor,
        image_rows: Tensor,
        rope_cos: Tensor,
        rope_sin: Tensor,
        query_scale: Tensor | None,
        write_index: Tensor,
        attend_until: Tensor,
        kv_positions: Tensor,
        logits_index: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits of one position per sequence, and the cache.

        Shapes: as in `bundle.signature`; past holds key and value of each layer in turn.
        """
        residual = self.embed(input_ids, image_features, image_rows)
        mask = kv_positions[None, None, None, :] <= attend_until[:, None, :, None]
        scale = None if query_scale is None else query_scale[:, None, :, None]
        step = Step(rope_cos, rope_sin, scale, mask, write_index, kv_positions.shape[0])
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            residual, key, value = layer(residual, step, past[2 * i], past[2 * i + 1])
            present += (key, value)
        return (self.logits(residual, logits_index), *present)

    def embed(self, input_ids: Tensor, image_features: Tensor, image_rows: Tensor) -> Tensor:
        """Token embeddings with image features in their places, fp32 [batch, seq, hidden]."""
        text = nn.functional.embedding(input_ids, self.embedding.weight)
        image = nn.functional.embedding(image_rows.clamp(min=0), image_features)
        return torch.where((image_rows >= 0)[..., None], image, text).float()

    def logits(self, residual: Tensor, logits_index: Tensor) -> Tensor:
        """fp32 [batch, vocab] of the positions `logits_index` [batch]: one row of the head's product, not seq."""
        index = logits_index[:, None, None].expand(-1, 1, residual.shape[-1])
        last = torch.gather(residual, 1, index)[:, 0]
        return nn.functional.linear(self.final_norm(last), self.lm_head.weight).float()
