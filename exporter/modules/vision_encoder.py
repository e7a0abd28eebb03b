"""The vision encoder: pixels → patch features. The residual stream is fp32 whatever the precision."""

import torch
from torch import Tensor, nn

from vlm_trt.bundle.config import VisionConfig
from vlm_trt.exporter.modules.layers import LayerNorm, Linear, merge_heads, split_heads
from vlm_trt.exporter.modules.onnx_operators import attention


class PatchEmbedding(nn.Module):
    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.patch_size = vision.patch_size
        shape = (vision.width, 3, vision.patch_size, vision.patch_size)
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[images, 3, H, W] → [images, patches, width]."""
        return nn.functional.conv2d(pixels, self.weight, stride=self.patch_size).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads, self.head_dim = vision.heads, vision.head_dim
        self.qkv = Linear(vision.width, 3 * vision.width, dtype, bias=True)
        self.output = Linear(vision.width, vision.width, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.qkv(x)
        query, key, value = (
            split_heads(packed, self.heads, part * self.heads * self.head_dim, self.head_dim) for part in range(3)
        )
        return self.output(merge_heads(attention(query, key, value, None, self.head_dim**-0.5)))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(vision.width, vision.mlp_width, dtype, bias=True)
        self.down = Linear(vision.mlp_width, vision.width, dtype, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))  # type: ignore[no-any-return]


class Layer(nn.Module):
    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_norm = LayerNorm(vision.width, vision.norm_eps, dtype)
        self.attention = Attention(vision, dtype)
        self.mlp_norm = LayerNorm(vision.width, vision.norm_eps, dtype)
        self.mlp = MLP(vision, dtype)

    def forward(self, residual: Tensor) -> Tensor:
        residual = residual + self.attention(self.attention_norm(residual)).float()
        return residual + self.mlp(self.mlp_norm(residual)).float()  # type: ignore[no-any-return]


class VisionEncoder(nn.Module):
    def __init__(self, vision: VisionConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.patch_embedding = PatchEmbedding(vision, dtype)
        self.position_embedding = nn.Parameter(torch.empty(vision.patches, vision.width, dtype=dtype), False)
        self.pre_norm = LayerNorm(vision.width, vision.norm_eps, torch.float32)
        self.layers = nn.ModuleList(Layer(vision, dtype) for _ in range(vision.layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [images, 3, H, W] fp32 → vision_features [images, patches, width]."""
        patches = self.patch_embedding(pixel_values.to(self.dtype))
        residual = self.pre_norm(patches + self.position_embedding)
        for layer in self.layers:
            residual = layer(residual)
        return residual.to(self.dtype)  # type: ignore[no-any-return]
