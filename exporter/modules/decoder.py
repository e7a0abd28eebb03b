"""The decoder with its static KV cache: one forward for prefill and decode, the graph contract of the bundle."""

import torch
from torch import Tensor, nn

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.exporter.modules.blocks import Step, decoder_layer
from vlm_trt.exporter.modules.layers import LayerNorm, RMSNorm


class Table(nn.Module):
    """A [vocabulary, hidden] matrix: the embedding, or the head as stored."""

    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(decoder.vocab_size, decoder.hidden, dtype=dtype), False)


class BiasedTable(Table):
    """A head that adds a bias."""

    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype) -> None:
        super().__init__(decoder, dtype)
        self.bias = nn.Parameter(torch.empty(decoder.vocab_size, dtype=dtype), False)


class Decoder(nn.Module):
    def __init__(self, decoder: DecoderConfig, dtype: torch.dtype, *, gives_hidden: bool = False) -> None:
        """
        Args:
            decoder: sizes.
            dtype: of products and cache.
            gives_hidden: whether the residual before the last norm is an output too.
        """
        super().__init__()
        self.gives_hidden = gives_hidden
        self.dtype, self.embedding_scale, self.logit_cap = dtype, decoder.embedding_scale, decoder.logit_cap
        self.embedding = Table(decoder, dtype)
        self.layers = nn.ModuleList(
            decoder_layer(decoder.block, decoder.hidden, dtype, index) for index in range(decoder.layers)
        )
        norm, head = (LayerNorm, BiasedTable) if decoder.biased_head else (RMSNorm, Table)
        self.final_norm = norm(decoder.hidden, decoder.block.norm_eps, dtype)
        if not decoder.tied_head:
            self.lm_head = head(decoder, dtype)

    @property
    def head(self) -> Table:
        """What logits are made with: a matrix of its own, or the embedding."""
        found = getattr(self, "lm_head", self.embedding)
        assert isinstance(found, Table)
        return found

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
        attend_from: Tensor | None,
        kv_positions: Tensor,
        logits_index: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits of the positions that are asked for, maybe their hidden states, and the cache.

        Shapes: as in `bundle.signature`; past holds key and value of each layer in turn.
        """
        residual = self.embed(input_ids, image_features, image_rows)
        positions = kv_positions[None, None, None, :]
        mask = positions <= attend_until[:, None, :, None]
        near = None if attend_from is None else mask & (positions >= attend_from[:, None, :, None])
        scale = None if query_scale is None else query_scale[:, None, :, None]
        step = Step(rope_cos, rope_sin, scale, mask, near, write_index, kv_positions.shape[0])
        present: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            residual, key, value = layer(residual, step, past[2 * i], past[2 * i + 1])
            present += (key, value)
        scored = self.scored(residual, logits_index)
        hidden = (scored,) if self.gives_hidden else ()
        return (self.logits(scored), *hidden, *present)

    def embed(self, input_ids: Tensor, image_features: Tensor, image_rows: Tensor) -> Tensor:
        """Token embeddings with image features in their places, fp32 [batch, seq, hidden]."""
        text = nn.functional.embedding(input_ids, self.embedding.weight)
        image = nn.functional.embedding(image_rows.clamp(min=0), image_features)
        shown = (image_rows >= 0)[..., None]
        if self.embedding_scale == 1:
            return torch.where(shown, image, text).float()
        return torch.where(shown, image.float(), text.float() * self.embedding_scale)

    def scored(self, residual: Tensor, logits_index: Tensor) -> Tensor:
        """The positions `logits_index` [scored] of the residual, counted through all sequences: of the head's product
        these rows alone."""
        return residual.flatten(0, 1).index_select(0, logits_index)

    def logits(self, residual: Tensor) -> Tensor:
        """fp32 [rows, vocab] of rows of the residual [rows, hidden]."""
        logits = nn.functional.linear(self.final_norm(residual), self.head.weight)
        if isinstance(self.head, BiasedTable):
            logits = logits + self.head.bias
        logits = logits.float()
        return logits if self.logit_cap is None else torch.tanh(logits / self.logit_cap) * self.logit_cap
