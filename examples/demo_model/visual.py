"""Vision encoder and resampler of Qwen-VL as modules that can be trained, and how they begin."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.demo_model.sizes import EPS, Sizes


class VisionAttention(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads = sizes.vision_heads
        self.in_proj = nn.Linear(sizes.vision_width, 3 * sizes.vision_width)
        self.out_proj = nn.Linear(sizes.vision_width, sizes.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.in_proj(x).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)  # per head [q|k|v]
        attended = functional.scaled_dot_product_attention(*packed)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class VisionMLP(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        inner = int(sizes.vision_width * sizes.vision_mlp_ratio)
        self.c_fc, self.c_proj = nn.Linear(sizes.vision_width, inner), nn.Linear(inner, sizes.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return out


class VisionBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(sizes.vision_width, EPS), VisionAttention(sizes)
        self.ln_2, self.mlp = nn.LayerNorm(sizes.vision_width, EPS), VisionMLP(sizes)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(VisionBlock(sizes) for _ in range(sizes.vision_layers))


class Packed(nn.Module):
    """Parameters of one nn.MultiheadAttention, under its names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) / math.sqrt(width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)


class Resampler(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.hidden
        self.heads = width // 128
        self.query = nn.Parameter(0.02 * torch.randn(sizes.queries, width))
        self.pos_embed = nn.Parameter(sin_cos_table(math.isqrt(sizes.queries), width), requires_grad=False)
        self.kv_proj = nn.Linear(sizes.vision_width, width, bias=False)
        self.ln_q, self.ln_kv = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn = Packed(width)
        self._attend_nearby(width)

    def _attend_nearby(self, width: int) -> None:
        """Begins with queries that look at the patches around their own place, so that little has to be learnt."""
        sharp = torch.zeros(width)
        quarter = width // 4
        for start in range(0, width, quarter):  # sines and cosines of both axes: the fastest frequencies of each
            sharp[start : start + 10] = 1
        heads = []
        for _ in range(self.heads):
            mixed = torch.linalg.qr(torch.randn(width, width)).Q[: width // self.heads]
            heads.append(3.4 * math.sqrt(self.heads) * mixed * sharp)
        near = torch.cat(heads)
        with torch.no_grad():
            self.attn.in_proj_weight[:width] = near
            self.attn.in_proj_weight[width : 2 * width] = near
            self.ln_q.weight.fill_(0.1)
            self.ln_kv.weight.fill_(0.3)
            self.attn.in_proj_weight[2 * width :] *= 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_kv(self.kv_proj(x))
        query = (self.ln_q(self.query) + self.pos_embed).expand(x.shape[0], -1, -1)
        key = x + resized(self.pos_embed, x.shape[1])
        projections = zip(
            (query, key, x), self.attn.in_proj_weight.chunk(3), self.attn.in_proj_bias.chunk(3), strict=True
        )
        projected: list[Tensor] = [functional.linear(*each) for each in projections]
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in projected)
        attended = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.attn.out_proj(attended.transpose(1, 2).flatten(2))
        return out


class Visual(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, patch, self.vision_heads = sizes.vision_width, sizes.patch_size, sizes.vision_heads
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(256, width))
        self.ln_pre = nn.LayerNorm(width, EPS)
        self.transformer = Transformer(sizes)
        self.attn_pool = Resampler(sizes)
        self.ln_post = nn.LayerNorm(sizes.hidden, EPS)
        self.proj = nn.Parameter(torch.randn(sizes.hidden, sizes.hidden) / math.sqrt(sizes.hidden))
        self._attend_neighbours(sizes)

    @torch.no_grad()
    def _attend_neighbours(self, sizes: Sizes) -> None:
        """Begins with heads that each look at one neighbour of their patch, so that shapes across patches are seen
        from the start. Positions get dimensions of their own for it, which the pixels leave alone at first.

        Source: d'Ascoli et al. 2021 (ConViT), the idea of convolution as an initialization of attention.
        """
        head_dim = sizes.vision_width // sizes.vision_heads
        frequencies = 2.0 * 0.8 ** torch.arange(head_dim // 4)
        places = (torch.arange(16) - (16 / sizes.grid - 1) / 2) / (16 / sizes.grid)
        along_x, along_y = places.repeat(16)[:, None] * frequencies, places.repeat_interleave(16)[:, None] * frequencies
        table = torch.cat([f(angles) for angles in (along_x, along_y) for f in (torch.cos, torch.sin)], 1)
        self.positional_embedding[:, :head_dim] = table
        self.conv1.weight[:head_dim] = 0
        for layer, offsets in enumerate(_OFFSETS):
            rows = self.get_parameter(f"transformer.resblocks.{layer}.attn.in_proj.weight")
            for head, (dx, dy) in enumerate(offsets):
                packed = rows[3 * head * head_dim : 3 * (head + 1) * head_dim]
                packed[: 2 * head_dim] *= 0.1
                packed[:head_dim, :head_dim] = 1.5 * turned(frequencies, dx, dy)
                packed[head_dim : 2 * head_dim, :head_dim] = 1.5 * torch.eye(head_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """[images, 3, H, W] → [images, queries, hidden]."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = self.ln_pre(x + resized(self.positional_embedding, x.shape[1]))
        for block in self.transformer.resblocks:
            x = block(x)
        features: Tensor = self.ln_post(self.attn_pool(x)) @ self.proj
        return features


# Which neighbour each head of each layer looks at first: columns to the right, rows down.
_OFFSETS = (
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, -1), (1, -1), (-1, 1)),
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
)


def turned(frequencies: Tensor, dx: int, dy: int) -> Tensor:
    """The matrix that moves [cos x, sin x, cos y, sin y] of a position by dx and dy."""
    matrix = torch.zeros(4 * len(frequencies), 4 * len(frequencies))
    size = 2 * len(frequencies)
    for at, offset in ((0, dx), (size, dy)):
        cos, sin = torch.diag((frequencies * offset).cos()), torch.diag((frequencies * offset).sin())
        matrix[at : at + size, at : at + size] = torch.cat((torch.cat((cos, -sin), 1), torch.cat((sin, cos), 1)))
    return matrix


def sin_cos_table(side: int, width: int) -> Tensor:
    """[side², width]: sines and cosines of one axis, then of the other. Source: Qwen-VL's `visual.py`."""
    frequencies = 10000.0 ** (-torch.arange(width // 4) / (width / 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    axes = (columns.flatten()[:, None] * frequencies, rows.flatten()[:, None] * frequencies)
    return torch.cat([part for angles in axes for part in (angles.sin(), angles.cos())], 1)


def resized(table: Tensor, positions: int) -> Tensor:
    """A position table on another grid, bicubic."""
    source, target = math.isqrt(table.shape[0]), math.isqrt(positions)
    if source == target:
        return table
    grid = table.reshape(1, source, source, -1).permute(0, 3, 1, 2)
    resampled = functional.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    return resampled.permute(0, 2, 3, 1).reshape(positions, -1)
