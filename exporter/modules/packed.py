"""Layers whose matrices are stored in 4 bits: a linear layer's product with integers, scales and zero points.

Traced, a matrix is one DequantizeLinear in blocks along the inputs, which both backends fuse with the product. Its
integers are int8 here, since torch computes nothing of 4 bits, and INT4 in the graph (`exporter/trace.py`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm_trt.exporter.modules.layers import Linear
from vlm_trt.exporter.modules.onnx_operators import dequantize_linear
from vlm_trt.exporter.packed_weights import PackedLayer, PackedPart


class PackedMatrix(nn.Module):
    """x @ matrix, without its zero points: x [..., inputs]."""

    def __init__(self, inputs: int, part: PackedPart, dtype: torch.dtype) -> None:
        super().__init__()
        self.block, blocks = part.block, inputs // part.block
        self.order = _parameter(inputs, dtype=torch.int64) if part.has_order else None
        self.integers = _parameter(inputs, part.outputs, dtype=torch.int8)
        self.scale = _parameter(blocks, part.outputs, dtype=dtype)
        self.zeros = _parameter(blocks, part.outputs, dtype=self.zeros_dtype(dtype)) if part.has_zeros else None

    @staticmethod
    def zeros_dtype(dtype: torch.dtype) -> torch.dtype:
        """Of the zero points, where products have that type."""
        return torch.int8

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x if self.order is None else x.index_select(-1, self.order))

    def product(self, x: Tensor) -> Tensor:
        """Of inputs that lie by their groups."""
        matrix: Tensor = dequantize_linear(self.integers, self.scale, self.zeros, self.block)
        return x @ matrix


class SummedMatrix(PackedMatrix):
    """The same for TensorRT, which takes no zero points: what they take away is a product of its own, of the sums of
    each block's inputs with zero point times scale."""

    @staticmethod
    def zeros_dtype(dtype: torch.dtype) -> torch.dtype:
        return dtype  # −8…7: every type holds them

    def product(self, x: Tensor) -> Tensor:
        assert self.zeros is not None
        matrix: Tensor = dequantize_linear(self.integers, self.scale, None, self.block)
        sums = x.reshape(*x.shape[:-1], -1, self.block).sum(-1)
        taken = self.zeros.float() * self.scale.float()  # in fp32, which ONNX Runtime's CPU has a kernel for
        return x @ matrix - sums @ taken.to(x.dtype)


class PackedLinear(nn.Module):
    """A linear layer of one or several matrices, whose outputs stand one behind the other."""

    def __init__(self, inputs: int, parts: Sequence[PackedPart], dtype: torch.dtype, *, bias: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(_matrix(part, dtype)(inputs, part, dtype) for part in parts)
        self.bias = _parameter(sum(part.outputs for part in parts), dtype=dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        products = [part(x) for part in self.parts]
        product: Tensor = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        return product if self.bias is None else product + self.bias


def pack_layers(module: nn.Module, layers: Sequence[PackedLayer], dtype: torch.dtype) -> None:
    """Puts layers of 4-bit matrices, their weights not yet set, in the place of those of that name."""
    for layer in layers:
        parent, _, leaf = layer.name.rpartition(".")
        floats = module.get_submodule(layer.name)
        assert isinstance(floats, Linear), f"{layer.name} is no linear layer"
        packed = PackedLinear(floats.weight.shape[0], layer.parts, dtype, bias=floats.bias is not None)
        setattr(module.get_submodule(parent), leaf, packed.eval())


def _matrix(part: PackedPart, dtype: torch.dtype) -> type[PackedMatrix]:
    return SummedMatrix if part.has_zeros and dtype is not torch.float32 else PackedMatrix


def _parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, dtype=dtype), requires_grad=False)
