"""The connectors: patch features → image tokens, as wide as the decoder."""

import torch
from torch import Tensor, nn

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import (
    LinearConnector,
    MergerConnector,
    MlpConnector,
    NormKind,
    PixelShuffleConnector,
    PoolingConnector,
    ResamplerConnector,
)
from vlm_trt.exporter.modules.activations import ACTIVATIONS
from vlm_trt.exporter.modules.layers import LayerNorm, Linear, RMSNorm, merge_heads, split_heads
from vlm_trt.exporter.modules.onnx_operators import attention


class Resampler(nn.Module):
    """Learnt queries attend to the patch features; everything up to `proj` belongs to it."""

    def __init__(self, resampler: ResamplerConnector, patches: int, dtype: torch.dtype) -> None:
        super().__init__()
        width, hidden = resampler.vision_width, resampler.hidden
        self.heads, self.head_dim = resampler.heads, resampler.head_dim
        self.kv_projection = Linear(width, hidden, dtype, bias=False) if width != hidden else nn.Identity()
        self.kv_norm = LayerNorm(hidden, resampler.norm_eps, dtype)
        self.key_position = nn.Parameter(torch.empty(patches, hidden, dtype=dtype), False)
        # The queries do not depend on the picture: normed, positioned and projected once, at export.
        self.query = nn.Parameter(torch.empty(resampler.tokens, hidden, dtype=dtype), False)
        self.key = Linear(hidden, hidden, dtype, bias=True)
        self.value = Linear(hidden, hidden, dtype, bias=True)
        self.output = Linear(hidden, hidden, dtype, bias=True)
        self.post_norm = LayerNorm(hidden, resampler.norm_eps, dtype)
        self.projection = Linear(hidden, hidden, dtype, bias=False)

    def forward(self, vision_features: Tensor) -> Tensor:
        """vision_features [images, patches, width] → image_features [images, tokens, hidden]."""
        features = self.kv_norm(self.kv_projection(vision_features))
        key = split_heads(self.key(features + self.key_position), self.heads, 0, self.head_dim)
        value = split_heads(self.value(features), self.heads, 0, self.head_dim)
        query = self.query.expand(vision_features.shape[0], -1, -1)
        query = split_heads(query, self.heads, 0, self.head_dim)
        pooled = self.output(merge_heads(attention(query, key, value, None, self.head_dim**-0.5)))
        return self.projection(self.post_norm(pooled))  # type: ignore[no-any-return]


class Projection(nn.Module):
    """One product with bias."""

    def __init__(self, connector: LinearConnector, dtype: torch.dtype) -> None:
        super().__init__()
        self.projection = Linear(connector.vision_width, connector.hidden, dtype, bias=True)

    def forward(self, vision_features: Tensor) -> Tensor:
        """vision_features [images, patches, width] → image_features [images, patches, hidden]."""
        return self.projection(vision_features)  # type: ignore[no-any-return]


class MLPProjection(nn.Module):
    """Two products, an activation between them."""

    def __init__(self, connector: MlpConnector, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(connector.vision_width, connector.hidden, dtype, bias=connector.bias)
        self.down = Linear(connector.hidden, connector.hidden, dtype, bias=connector.bias)
        self.activation = ACTIVATIONS[connector.activation]

    def forward(self, vision_features: Tensor) -> Tensor:
        """vision_features [images, patches, width] → image_features [images, patches, hidden]."""
        return self.down(self.activation(self.up(vision_features)))  # type: ignore[no-any-return]


class PixelShuffle(nn.Module):
    """Squares of patches, joined and projected."""

    def __init__(self, connector: PixelShuffleConnector, grid: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.side, self.across = connector.side, grid // connector.side
        self.projection = Linear(connector.side**2 * connector.vision_width, connector.hidden, dtype, bias=False)

    def forward(self, vision_features: Tensor) -> Tensor:
        """vision_features [images, patches, width] → image_features [images, patches / side², hidden]."""
        width, side, across = vision_features.shape[-1], self.side, self.across
        squares = vision_features.reshape(-1, across, side, across, side, width).transpose(2, 3)
        return self.projection(squares.reshape(-1, across**2, side**2 * width))  # type: ignore[no-any-return]


class Merger(nn.Module):
    """Patches normed, those of one token joined, two products."""

    def __init__(self, connector: MergerConnector, dtype: torch.dtype) -> None:
        super().__init__()
        norm = LayerNorm if connector.norm is NormKind.LAYER else RMSNorm
        self.joined = connector.token_side**2 * connector.vision_width
        self.norm = norm(connector.vision_width, connector.norm_eps, dtype)
        self.up = Linear(self.joined, self.joined, dtype, bias=True)
        self.down = Linear(self.joined, connector.hidden, dtype, bias=True)

    def forward(self, vision_features: Tensor) -> Tensor:
        """vision_features [images, patches, width] → image_features [images, patches / token_side², hidden]."""
        joined = self.norm(vision_features).reshape(vision_features.shape[0], -1, self.joined)
        return self.down(nn.functional.gelu(self.up(joined)))  # type: ignore[no-any-return]


class PoolingProjection(nn.Module):
    """The whole picture's patches beside the crops' averages, two products, an activation between them."""

    def __init__(self, connector: PoolingConnector, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(2 * connector.vision_width, connector.inner, dtype, bias=True)
        self.down = Linear(connector.inner, connector.hidden, dtype, bias=True)
        self.activation = ACTIVATIONS[connector.activation]

    def forward(self, vision_features: Tensor, pool_rows: Tensor, pool_columns: Tensor) -> Tensor:
        """image_features [images, side², hidden].

        Args:
            vision_features: [images, crops · patches, width], the whole picture first.
            pool_rows, pool_columns: what each row and column of a crop's patches adds to those of the square:
                [images, crops, side, grid] each, all 0 for the whole picture.
        """
        images, crops, side, grid = pool_rows.shape
        width, dtype = vision_features.shape[-1], vision_features.dtype
        rows = pool_rows.to(dtype) @ vision_features.reshape(images, crops, grid, grid * width)
        by_column = rows.reshape(images, crops, side, grid, width).transpose(2, 3).reshape(images, crops, grid, -1)
        squares = (pool_columns.to(dtype) @ by_column).reshape(images, crops, side, side, width)
        pooled = squares.sum(dim=1).transpose(1, 2).reshape(images, side * side, width)
        both = torch.cat((vision_features[:, : grid * grid], pooled), dim=-1)
        return self.down(self.activation(self.up(both)))  # type: ignore[no-any-return]


def connector(model: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """The module of a model's connector."""
    match model.connector:
        case ResamplerConnector():
            return Resampler(model.connector, model.square.patches, dtype)
        case LinearConnector():
            return Projection(model.connector, dtype)
        case MlpConnector():
            return MLPProjection(model.connector, dtype)
        case PixelShuffleConnector():
            return PixelShuffle(model.connector, model.square.grid, dtype)
        case PoolingConnector():
            return PoolingProjection(model.connector, dtype)
        case MergerConnector():
            return Merger(model.connector, dtype)
