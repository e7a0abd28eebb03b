"""Layers shared by the modules of the model. Weights lie as the graph wants them; arithmetic says where it is fp32."""

import torch
from torch import Tensor, nn

from vlm_trt.exporter.modules.onnx_operators import rms_normalization


class Linear(nn.Module):
    """x @ weight + bias with weight [in, out]: the layout of the graph, so that no Transpose is left in it."""

    def __init__(self, inputs: int, outputs: int, dtype: torch.dtype, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


class LayerNorm(nn.Module):
    """fp32 layer normalization, rounded to the activation type."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps, self.dtype = eps, dtype
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = nn.functional.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps)
        return normed.to(self.dtype)


class RMSNorm(nn.Module):
    """fp32 root-mean-square normalization, rounded to the activation type."""

    def __init__(self, width: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps, self.dtype = eps, dtype
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = rms_normalization(x.float(), self.weight, self.eps)
        return normed.to(self.dtype)


def split_heads(x: Tensor, heads: int, start: int, head_dim: int) -> Tensor:
    """[batch, seq, *] → [batch, heads, seq, head_dim] from the columns start…start+heads·head_dim−1."""
    batch, seq = x.shape[0], x.shape[1]
    return x[..., start : start + heads * head_dim].reshape(batch, seq, heads, head_dim).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[batch, heads, seq, head_dim] → [batch, seq, heads·head_dim]."""
    batch, heads, seq, head_dim = x.shape
    return x.transpose(1, 2).reshape(batch, seq, heads * head_dim)
