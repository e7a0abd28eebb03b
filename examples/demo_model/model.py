"""Qwen-VL as a model that can be trained: plain torch, parameters named as in the published checkpoints.

The exporter's modules cannot be trained (some of their operators have no gradient, their weights lie transposed); this
is the same arithmetic written again, and a test holds the two equal. Source: the facts in
`families/qwen_vl/weights.py`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo_model.sizes import EPS, Sizes
from examples.demo_model.visual import Visual


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, EPS)


class DecoderAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.c_attn = nn.Linear(sizes.hidden, 3 * sizes.hidden)
        self.c_proj = nn.Linear(sizes.hidden, sizes.hidden, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(
            rotated(query, *rotary), rotated(key, *rotary), value, attn_mask=mask
        )
        out: Tensor = self.c_proj(attended.transpose(1, 2).flatten(2))
        return out


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[batch, heads, seq, dim] with the two halves of each head rotated; cos and sin [batch, 1, seq, dim/2]."""
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class DecoderMLP(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.w1 = nn.Linear(sizes.hidden, sizes.mlp_width, bias=False)
        self.w2 = nn.Linear(sizes.hidden, sizes.mlp_width, bias=False)
        self.c_proj = nn.Linear(sizes.mlp_width, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.w1(x) * functional.silu(self.w2(x)))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln_1, self.attn = RMSNorm(sizes.hidden), DecoderAttention(sizes)
        self.ln_2, self.mlp = RMSNorm(sizes.hidden), DecoderMLP(sizes)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), rotary, mask)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Body(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocab, sizes.hidden)
        self.h = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.layers))
        self.ln_f = RMSNorm(sizes.hidden)
        self.visual = Visual(sizes)


class QwenVL(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.transformer = Body(sizes)
        self.lm_head = nn.Linear(sizes.hidden, sizes.vocab, bias=False)
        nn.init.normal_(self.transformer.wte.weight, std=0.5)
        nn.init.normal_(self.lm_head.weight, std=sizes.hidden**-0.5)
        for name, weight in self.transformer.h.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(weight, std=(2 * sizes.layers * weight.shape[1]) ** -0.5)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [batch, 1, seq, head_dim/2] of positions [batch, seq]."""
        dim = self.sizes.hidden // self.sizes.heads
        angles = positions[:, None, :, None] * 10000.0 ** (-torch.arange(0, dim, 2) / dim)
        return angles.cos(), angles.sin()

    def hidden(self, ids: Tensor, features: Tensor, rows: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Final-norm output [batch, seq, hidden]; arguments as of `states`."""
        return self.states(ids, features, rows, positions, mask)[0]

    def states(
        self, ids: Tensor, features: Tensor, rows: Tensor, positions: Tensor, mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Final-norm output, and the residual stream behind each layer; all [batch, seq, hidden].

        Args:
            ids: [batch, seq].
            features: image features of the batch, flattened [image_tokens, hidden].
            rows: row of `features` at each position, −1 for text [batch, seq].
            positions: of the rotary embedding [batch, seq].
            mask: which positions each may see, bool [batch, 1, seq, seq].
        """
        body = self.transformer
        image = functional.embedding(rows.clamp(min=0), features)
        x = torch.where((rows >= 0)[..., None], image, body.wte(ids))
        rotary = self.rotary(positions)
        behind = []
        for layer in body.h:
            x = layer(x, rotary, mask)
            behind.append(x)
        return body.ln_f(x), *behind
