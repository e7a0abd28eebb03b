"""The vision towers for squares, and for several squares of one picture: pixels → patch features.

The residual stream is fp32 whatever the precision. Each is `embed`, `layers`, `finish`: so that a model of any size can
be computed a layer at a time.
"""

import torch
from torch import Tensor, nn

from vlm_trt.bundle.parts import (
    Activation,
    ClipTower,
    CropTower,
    FrameTower,
    OpenClipTower,
    SiglipTower,
    SquareTower,
)
from vlm_trt.exporter.modules.activations import ACTIVATIONS
from vlm_trt.exporter.modules.layers import LayerNorm, Linear, merge_heads, split_heads
from vlm_trt.exporter.modules.onnx_operators import attention


class PatchEmbedding(nn.Module):
    def __init__(self, tower: SquareTower | CropTower, dtype: torch.dtype, *, bias: bool) -> None:
        super().__init__()
        self.patch_size = tower.patch_size
        shape = (tower.width, 3, tower.patch_size, tower.patch_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(tower.width, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, pixels: Tensor) -> Tensor:
        """[images, 3, H, W] → [images, patches, width]."""
        patches = nn.functional.conv2d(pixels, self.weight, self.bias, stride=self.patch_size)
        return patches.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, tower: SquareTower | CropTower, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_dim = tower.heads, tower.head_dim
        self.qkv = Linear(tower.width, 3 * tower.width, dtype, bias=True)
        self.output = Linear(tower.width, tower.width, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x)
        query, key, value = (
            split_heads(packed, self.heads, part * self.heads * self.head_dim, self.head_dim) for part in range(3)
        )
        return self.output(merge_heads(attention(query, key, value, None, self.head_dim**-0.5)))  # type: ignore[no-any-return]


class CropAttention(Attention):
    """Of each patch to those of its crop; x [images, crops · patches, width]."""

    def __init__(self, tower: CropTower, dtype: torch.dtype) -> None:
        super().__init__(tower, dtype)
        self.patches = tower.patches

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, self.patches, x.shape[-1])).reshape(x.shape)


class MLP(nn.Module):
    def __init__(self, tower: SquareTower | CropTower | FrameTower, activation: Activation, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(tower.width, tower.mlp_width, dtype, bias=True)
        self.down = Linear(tower.mlp_width, tower.width, dtype, bias=True)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, tower: SquareTower | CropTower, activation: Activation, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(tower.width, tower.norm_eps, dtype)
        self.attention = CropAttention(tower, dtype) if isinstance(tower, CropTower) else Attention(tower, dtype)
        self.mlp_norm = LayerNorm(tower.width, tower.norm_eps, dtype)
        self.mlp = MLP(tower, activation, dtype)

    def forward(self, residual: Tensor, lie: None = None) -> Tensor:
        residual = residual + self.attention(self.attention_norm(residual)).float()
        return residual + self.mlp(self.mlp_norm(residual)).float()  # type: ignore[no-any-return]


class VisionEncoder(nn.Module):
    """What all towers share; shapes: pixel_values [images, 3, H, W] fp32, residual [images, positions, width] fp32."""

    def __init__(self, tower: SquareTower | CropTower, activation: Activation, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.layers = nn.ModuleList(Layer(tower, activation, dtype) for _ in range(tower.layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [images, 3, H, W] fp32 → vision_features [images, patches, width]."""
        residual = self.embed(pixel_values)
        for layer in self.layers:
            residual = layer(residual)
        return self.finish(residual)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """The residual before the first layer."""
        raise NotImplementedError

    def lie(self) -> None:
        """What the layers are told of where patches lie: nothing, since a square has a table of positions."""

    def finish(self, residual: Tensor) -> Tensor:
        """vision_features [images, patches, width] of the residual behind the last layer."""
        return residual.to(self.dtype)


class OpenClipEncoder(VisionEncoder):
    def __init__(self, tower: OpenClipTower, dtype: torch.dtype) -> None:
        super().__init__(tower, Activation.GELU, dtype)
        self.patch_embedding = PatchEmbedding(tower, dtype, bias=False)
        self.position_embedding = nn.Parameter(torch.empty(tower.patches, tower.width, dtype=dtype), False)
        self.pre_norm = LayerNorm(tower.width, tower.norm_eps, torch.float32)

    def embed(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values.to(self.dtype))
        return self.pre_norm(patches + self.position_embedding)  # type: ignore[no-any-return]


class ClipEncoder(VisionEncoder):
    def __init__(self, tower: ClipTower, dtype: torch.dtype) -> None:
        super().__init__(tower, tower.activation, dtype)
        self.patch_embedding = PatchEmbedding(tower, dtype, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(tower.width, dtype=dtype), False)
        self.position_embedding = nn.Parameter(torch.empty(tower.patches + 1, tower.width, dtype=dtype), False)
        self.pre_norm = LayerNorm(tower.width, tower.norm_eps, torch.float32)

    def embed(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values.to(self.dtype))
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        return self.pre_norm(torch.cat((first, patches), dim=1) + self.position_embedding)  # type: ignore[no-any-return]

    def finish(self, residual: Tensor) -> Tensor:
        return residual[:, 1:].to(self.dtype)


class SiglipEncoder(VisionEncoder):
    def __init__(self, tower: SiglipTower | CropTower, dtype: torch.dtype) -> None:
        super().__init__(tower, tower.activation, dtype)
        self.patch_embedding = PatchEmbedding(tower, dtype, bias=True)
        self.position_embedding = nn.Parameter(torch.empty(tower.patches, tower.width, dtype=dtype), False)
        self.post_norm = LayerNorm(tower.width, tower.norm_eps, dtype)

    def embed(self, pixel_values: Tensor) -> Tensor:
        patches: Tensor = self.patch_embedding(pixel_values.to(self.dtype))
        return (patches + self.position_embedding).float()

    def finish(self, residual: Tensor) -> Tensor:
        return self.post_norm(residual)  # type: ignore[no-any-return]


class CropEncoder(SiglipEncoder):
    """SigLIP's on every crop; pixel_values [images, crops, 3, H, W], features [images, crops · patches, width]."""

    def embed(self, pixel_values: Tensor) -> Tensor:
        crops = super().embed(pixel_values.flatten(0, 1))
        return crops.reshape(pixel_values.shape[0], -1, crops.shape[-1])


def square_encoder(tower: SquareTower | CropTower, dtype: torch.dtype) -> VisionEncoder:
    """The module of a tower for squares."""
    match tower:
        case CropTower():
            return CropEncoder(tower, dtype)
        case OpenClipTower():
            return OpenClipEncoder(tower, dtype)
        case ClipTower():
            return ClipEncoder(tower, dtype)
        case SiglipTower():
            return SiglipEncoder(tower, dtype)
