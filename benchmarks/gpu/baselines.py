"""Stage "baselines": one decode step of a decoder of the same shape as others run it: torch, and transformers.

The torch decoder is written here, as short as a fair one can be: a static cache written in place, torch's own fused
attention, no picture. Its weights are random: zeros would be faster.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from benchmarks.gpu.kit import Kit
from benchmarks.gpu.speed import spread
from benchmarks.gpu.steps import Found, Step
from vlm_trt.bundle.config import DecoderConfig

_BATCHES, _CACHED = (1, 8), 2000


def steps(kit: Kit) -> Iterator[Step]:
    _, model, _, limits = kit.parts()
    cached = min(_CACHED, limits.max_seq_tokens - 32)
    for batch in sorted({min(one, limits.max_batch) for one in _BATCHES}):
        for how in ("eager", "compiled", "graph"):
            yield f"torch, {how}, {batch} × {cached}", partial(_torch, kit, model.decoder, how, batch, cached)
        for how in ("eager", "compiled"):
            name = f"transformers, {how}, {batch} × {cached}"
            yield name, partial(_transformers, kit, model.decoder, how, batch, cached)


class StaticDecoder(nn.Module):
    """One step of Llama's arithmetic, which Qwen's decoder shares but for a bias."""

    def __init__(self, decoder: DecoderConfig, batch: int, window: int, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.heads, self.dim, self.eps = decoder.heads, decoder.head_dim, decoder.block.norm_eps
        hidden, mlp = decoder.hidden, decoder.mlp_width

        def made(*shape: int) -> Tensor:
            return (torch.randn(shape, device=device) / math.sqrt(shape[-1])).to(dtype)

        self.table, self.head = made(decoder.vocab_size, hidden), made(decoder.vocab_size, hidden)
        self.layers = [
            (made(3 * hidden, hidden), made(hidden, hidden), made(2 * mlp, hidden), made(hidden, mlp))
            for _ in range(decoder.layers)
        ]
        shape = (batch, decoder.heads, window, decoder.head_dim)
        self.cache = [
            (torch.randn(shape, device=device).to(dtype), torch.randn(shape, device=device).to(dtype))
            for _ in range(decoder.layers)
        ]
        self.norm = torch.ones(hidden, device=device, dtype=dtype)
        half = torch.arange(decoder.head_dim // 2, device=device) / (decoder.head_dim // 2)
        self.inverse = 10000.0**-half

    @torch.no_grad()
    def forward(self, ids: Tensor, at: Tensor) -> Tensor:
        """Logits [batch, vocab] of one token a sequence, all at the position `at` [1]."""
        batch, hidden = ids.shape[0], self.table.shape[1]
        angles = at * self.inverse
        cos, sin = (torch.cat([part, part]).to(self.table.dtype) for part in (angles.cos(), angles.sin()))
        x = self.table[ids]
        mask = (torch.arange(self.cache[0][0].shape[2], device=ids.device) <= at)[None, None, None]
        for (qkv, out, up_gate, down), (keys, values) in zip(self.layers, self.cache, strict=True):
            packed = linear(rms_norm(x, (hidden,), self.norm, self.eps), qkv).view(batch, 3, self.heads, 1, self.dim)
            query, key = (_rotated(packed[:, one], cos, sin) for one in (0, 1))
            keys.index_copy_(2, at, key)
            values.index_copy_(2, at, packed[:, 2])
            context = scaled_dot_product_attention(query, keys, values, attn_mask=mask)
            x = x + linear(context.reshape(batch, hidden), out)
            up, gate = linear(rms_norm(x, (hidden,), self.norm, self.eps), up_gate).chunk(2, dim=-1)
            x = x + linear(up * silu(gate), down)
        return linear(rms_norm(x, (hidden,), self.norm, self.eps), self.head).float()


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _torch(kit: Kit, decoder: DecoderConfig, how: str, batch: int, cached: int) -> Found:
    device = kit.device.torch
    dtype = torch.float16 if device == "cuda" else torch.float32
    module = StaticDecoder(decoder, batch, cached + 32, dtype, device)
    ids, at = torch.randint(decoder.vocab_size, (batch,), device=device), torch.tensor([cached], device=device)
    run: Callable[[], Any] = partial(module, ids, at)
    if how == "compiled":
        run = partial(torch.compile(module), ids, at)
    elif how == "graph":
        if device != "cuda":
            raise RuntimeError("CUDA graphs need a GPU")
        run = _captured(run)
    return _timed(kit, run, batch, cached, dtype)


def _captured(run: Callable[[], Any]) -> Callable[[], Any]:
    side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _timed(kit: Kit, run: Callable[[], Any], batch: int, cached: int, dtype: torch.dtype) -> Found:
    def ended() -> None:
        run()
        kit.device.synchronize()

    return {"batch": batch, "cached_tokens": cached, "dtype": str(dtype), "ms": spread(ended, kit.device.runs)}


def _transformers(kit: Kit, decoder: DecoderConfig, how: str, batch: int, cached: int) -> Found:
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    device = kit.device.torch
    dtype = torch.float16 if device == "cuda" else torch.float32
    config = LlamaConfig(
        vocab_size=decoder.vocab_size, hidden_size=decoder.hidden, intermediate_size=decoder.mlp_width,
        num_hidden_layers=decoder.layers, num_attention_heads=decoder.heads, max_position_embeddings=cached + 32,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype).eval()
    cache = StaticCache(config=config, max_cache_len=cached + 32)
    ids = torch.randint(decoder.vocab_size, (batch, 1), device=device)
    at = torch.tensor([cached], device=device)
    forward = torch.compile(model, mode="reduce-overhead") if how == "compiled" else model

    @torch.no_grad()
    def run() -> None:
        forward(ids, position_ids=at[None].expand(batch, 1), past_key_values=cache, cache_position=at, use_cache=True)

    return _timed(kit, run, batch, cached, dtype)
