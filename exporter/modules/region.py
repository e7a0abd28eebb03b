"""Moondream's region heads: hidden states → bins of coordinates and sizes; their values → what the decoder is given."""

import math

import torch
from torch import Tensor, nn

from vlm_trt.bundle.parts import RegionHeads
from vlm_trt.exporter.modules.activations import ACTIVATIONS
from vlm_trt.exporter.modules.layers import Linear


class Head(nn.Module):
    """Hidden states [rows, hidden] → logits [rows, bins]."""

    def __init__(self, region: RegionHeads, bins: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.up = Linear(region.hidden, region.inner, dtype, bias=True)
        self.down = Linear(region.inner, bins, dtype, bias=True)
        self.activation = ACTIVATIONS[region.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(x))).float()  # type: ignore[no-any-return]


class Fourier(nn.Module):
    """Values [rows, values] → cosines and sines of learnt frequencies → [rows, hidden]."""

    def __init__(self, region: RegionHeads, values: int, features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.frequencies = nn.Parameter(torch.empty(values, features // 2), False)
        self.projection = Linear(features, region.hidden, dtype, bias=True)

    def forward(self, values: Tensor) -> Tensor:
        angles = 2 * math.pi * values @ self.frequencies
        return self.projection(torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.dtype))  # type: ignore[no-any-return]


class Region(nn.Module):
    def __init__(self, region: RegionHeads, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.bins = dtype, region.size_bins
        self.coordinate_head = Head(region, region.coordinate_bins, dtype)
        self.size_head = Head(region, 2 * region.size_bins, dtype)
        self.coordinate_encoder = Fourier(region, 1, region.coordinate_features, dtype)
        self.size_encoder = Fourier(region, 2, region.size_features, dtype)

    def forward(self, hidden_states: Tensor, coordinate: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of a coordinate and of a width and height, and the features of both. Shapes: `bundle.signature`."""
        hidden = hidden_states.to(self.dtype)
        sizes = self.size_head(hidden).reshape(-1, 2, self.bins)
        return self.coordinate_head(hidden), sizes, self.coordinate_encoder(coordinate), self.size_encoder(size)
