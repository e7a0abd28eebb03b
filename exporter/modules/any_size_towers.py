"""The vision towers for pictures of any size: patches, and where each one lies, → patch features.

The residual stream is fp32 whatever the precision. Windows are a matter of two indices that the host makes: which patch
stands at each place of each window, and at which place each patch stands.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlm_trt.bundle.parts import FrameTower, WindowTower
from vlm_trt.exporter.modules.activations import ACTIVATIONS
from vlm_trt.exporter.modules.layers import LayerNorm, Linear, RMSNorm, merge_heads, split_heads
from vlm_trt.exporter.modules.onnx_operators import attention, rotary_embedding
from vlm_trt.exporter.modules.towers import MLP


@dataclass(frozen=True)
class Windows:
    """The patches once more, window by window."""

    patches: Tensor  # [slots]: which patch stands there; 0 where there is none
    slots: Tensor  # [patches]: where each one stands
    mask: Tensor  # bool [images·windows, 1, side², side²]: no patch attends to a place where there is none
    cos: Tensor  # [images·windows, side², head_dim/2]
    sin: Tensor


@dataclass(frozen=True)
class Lie:
    """Where the patches lie: what all layers share."""

    cos: Tensor  # [images, patches, head_dim/2]
    sin: Tensor
    windows: Windows | None


class Attention(nn.Module):
    """Of each patch to all of its frame."""

    def __init__(self, tower: FrameTower | WindowTower, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_dim, self.dtype = tower.heads, tower.head_dim, dtype
        self.qkv = Linear(tower.width, 3 * tower.width, dtype, bias=True)
        self.output = Linear(tower.width, tower.width, dtype, bias=True)

    def forward(self, x: Tensor, lie: Lie) -> Tensor:
        return self.output(self.attend(self.qkv(x), lie.cos, lie.sin, None))  # type: ignore[no-any-return]

    def attend(self, packed: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """Packed queries, keys and values [batch, seq, 3·width] → [batch, seq, width]."""
        query, key, value = (
            split_heads(packed, self.heads, part * self.heads * self.head_dim, self.head_dim) for part in range(3)
        )
        query = rotary_embedding(query.float(), cos, sin).to(self.dtype)
        key = rotary_embedding(key.float(), cos, sin).to(self.dtype)
        return merge_heads(attention(query, key, value, mask, self.head_dim**-0.5))


class WindowAttention(Attention):
    """Of each patch to those of its window."""

    def __init__(self, tower: WindowTower, dtype: torch.dtype) -> None:
        super().__init__(tower, dtype)
        self.places = tower.window**2

    def forward(self, x: Tensor, lie: Lie) -> Tensor:
        windows = lie.windows
        assert windows is not None
        packed = self.qkv(x).index_select(1, windows.patches)
        packed = packed.reshape(-1, self.places, packed.shape[-1])
        context = self.attend(packed, windows.cos, windows.sin, windows.mask)
        context = context.reshape(x.shape[0], -1, x.shape[-1]).index_select(1, windows.slots)
        return self.output(context)  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    def __init__(self, tower: WindowTower, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(tower.width, tower.mlp_width, dtype, bias=True)
        self.gate = Linear(tower.width, tower.mlp_width, dtype, bias=True)
        self.down = Linear(tower.mlp_width, tower.width, dtype, bias=True)
        self.activation = ACTIVATIONS[tower.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * self.activation(self.gate(x)))  # type: ignore[no-any-return]


class FrameLayer(nn.Module):
    def __init__(self, tower: FrameTower, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(tower.width, tower.norm_eps, dtype)
        self.attention = Attention(tower, dtype)
        self.mlp_norm = LayerNorm(tower.width, tower.norm_eps, dtype)
        self.mlp = MLP(tower, tower.activation, dtype)

    def forward(self, residual: Tensor, lie: Lie) -> Tensor:
        residual = residual + self.attention(self.attention_norm(residual), lie).float()
        return residual + self.mlp(self.mlp_norm(residual)).float()  # type: ignore[no-any-return]


class WindowLayer(nn.Module):
    def __init__(self, tower: WindowTower, dtype: torch.dtype, index: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(tower.width, tower.norm_eps, dtype)
        self.attention = (Attention if index in tower.full_layers else WindowAttention)(tower, dtype)
        self.mlp_norm = RMSNorm(tower.width, tower.norm_eps, dtype)
        self.mlp = GatedMLP(tower, dtype)

    def forward(self, residual: Tensor, lie: Lie) -> Tensor:
        residual = residual + self.attention(self.attention_norm(residual), lie).float()
        return residual + self.mlp(self.mlp_norm(residual)).float()  # type: ignore[no-any-return]


class _AnySizeEncoder(nn.Module):
    """Pictures of any size; inputs as `bundle.signature` has them, residual [images, patches, width] fp32."""

    def __init__(self, tower: FrameTower | WindowTower, layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.patch_embedding = Linear(tower.patch_values, tower.width, dtype, bias=False)
        self.layers = nn.ModuleList(layers)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The residual before the first layer."""
        return self.patch_embedding(pixel_values.to(self.dtype)).float()  # type: ignore[no-any-return]

    def through(self, residual: Tensor, lie: Lie) -> Tensor:
        """vision_features [images, patches, width] of the residual before the first layer."""
        for layer in self.layers:
            residual = layer(residual, lie)
        return self.finish(residual)

    def finish(self, residual: Tensor) -> Tensor:
        """vision_features of the residual behind the last layer."""
        return residual.to(self.dtype)


class FrameEncoder(_AnySizeEncoder):
    def __init__(self, tower: FrameTower, dtype: torch.dtype) -> None:
        super().__init__(tower, (FrameLayer(tower, dtype) for _ in range(tower.layers)), dtype)

    def forward(self, pixel_values: Tensor, rope_cos: Tensor, rope_sin: Tensor) -> Tensor:
        """vision_features [images, patches, width]."""
        return self.through(self.embed(pixel_values), self.lie(rope_cos, rope_sin))

    def lie(self, rope_cos: Tensor, rope_sin: Tensor) -> Lie:
        """What the layers are told."""
        return Lie(rope_cos, rope_sin, None)


class WindowEncoder(_AnySizeEncoder):
    """With windows on most layers."""

    def __init__(self, tower: WindowTower, dtype: torch.dtype) -> None:
        super().__init__(tower, (WindowLayer(tower, dtype, index) for index in range(tower.layers)), dtype)
        self.places = tower.window**2

    def forward(
        self, pixel_values: Tensor, rope_cos: Tensor, rope_sin: Tensor, window_patches: Tensor, patch_slots: Tensor
    ) -> Tensor:
        """vision_features [images, patches, width]."""
        return self.through(self.embed(pixel_values), self.lie(rope_cos, rope_sin, window_patches, patch_slots))

    def lie(self, rope_cos: Tensor, rope_sin: Tensor, window_patches: Tensor, patch_slots: Tensor) -> Lie:
        """What the layers are told. Images of a run have one size, so the windows of the first are those of all."""
        images, places, half = rope_cos.shape[0], self.places, rope_cos.shape[-1]
        stands = (window_patches[0] >= 0).reshape(1, -1, 1, 1, places).expand(images, -1, 1, places, places)
        patches = window_patches[0].clamp(min=0)
        windows = Windows(
            patches=patches,
            slots=patch_slots[0],
            mask=stands.reshape(-1, 1, places, places),
            cos=rope_cos.index_select(1, patches).reshape(-1, places, half),
            sin=rope_sin.index_select(1, patches).reshape(-1, places, half),
        )
        return Lie(rope_cos, rope_sin, windows)
