"""Which of a graph's weights a checkpoint has in 4 bits, and what they become: integers, scales, zero points, an order.

Nothing becomes a float on the way. Integers and zero points lose 8 each, so that zero points of 8, which symmetric
quantization has everywhere, need not be there; a group of more inputs than a block becomes several with one scale.
Inputs that do not lie by their groups (activation order) are brought into that order: by the columns of what makes
them where that is free (the halves of a gated MLP), else by looking them up.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.packed_tensors import PackedTensors, Sizes
from vlm_trt.families.weights import Layout, Weight

_SHIFT = 8
# Inputs that share a scale in a graph, at most: kernels of both backends take these, and all of them divide each other.
_LARGEST_BLOCK = 128


@dataclass(frozen=True)
class PackedWeight(Weight):
    """One tensor of a matrix that is stored in 4 bits, or of several with the same inputs."""

    dtype: str = "int4"
    block: int = _LARGEST_BLOCK
    columns_of: str | None = None  # the matrix whose order of inputs the outputs are brought into


@dataclass(frozen=True)
class PackedPart:
    """Outputs of a layer that take the inputs in one order."""

    outputs: int
    block: int
    has_zeros: bool
    has_order: bool


@dataclass(frozen=True)
class PackedLayer:
    """A layer of a module with 4-bit matrices."""

    name: str  # of the module
    parts: tuple[PackedPart, ...]


@dataclass(frozen=True)
class GraphWeights:
    """The weights of one graph, and which layers of it have 4 bits."""

    weights: tuple[Weight, ...]
    packed: tuple[PackedLayer, ...] = ()


def graph_weights(
    weights: Sequence[Weight], component: Component, checkpoint: Checkpoint, precision: Precision
) -> GraphWeights:
    """A component's weights as its graph of that precision has them.

    Args:
        weights: of the whole model, as of a checkpoint in floats.
        component: whose.
        checkpoint: where they come from.
        precision: of the graph.
    Raises:
        UnsupportedError: a matrix in 4 bits where graphs take floats.
        CheckpointError: a matrix is damaged.
    """
    own = tuple(weight for weight in weights if weight.component is component)
    if checkpoint.packed is None:
        return GraphWeights(own)
    found = _Component(own, checkpoint, checkpoint.packed, precision)
    return GraphWeights(tuple(found.weights()), tuple(found.layers))


def packed_values(weight: PackedWeight, packed: PackedTensors) -> Tensor:
    """The values of one tensor: of 4 bits two to a byte, the first in the low half; scales as they are stored.

    Source: ONNX, "4-bit types", https://onnx.ai/onnx/technical/int4.html.
    """
    names = [f"{key.rpartition('.')[0]}.weight" for key in weight.keys]
    if weight.layout is Layout.ORDER:
        return _order(names[0], packed)
    joined = torch.cat([_values(weight, name, packed) for name in names], dim=1)
    if weight.columns_of is not None:
        joined = joined[:, _order(weight.columns_of, packed)]
    if weight.dtype == "int4":
        halves = (joined ^ _SHIFT).reshape(-1)  # less 8, in two's complement: the highest bit turned
        return halves[0::2] | (halves[1::2] << 4)
    return joined if weight.layout is Layout.SCALES else joined.float() - _SHIFT


def _values(weight: PackedWeight, name: str, packed: PackedTensors) -> Tensor:
    """Of one matrix [inputs or blocks, outputs]."""
    if weight.layout is Layout.INTEGERS:
        integers, order = packed.integers(name), packed.order(name)
        return integers if order is None else integers[order]
    values, sizes = packed.scales(name) if weight.layout is Layout.SCALES else packed.zeros(name), packed.sizes[name]
    return values.repeat_interleave(sizes.inputs // sizes.groups // weight.block, dim=0)


def _order(name: str, packed: PackedTensors) -> Tensor:
    order = packed.order(name)
    assert order is not None, f"{name} takes its inputs as they come"
    return order


class _Component:
    """The weights of one component, read once for what decides about the graph."""

    def __init__(
        self, weights: Sequence[Weight], checkpoint: Checkpoint, packed: PackedTensors, precision: Precision
    ) -> None:
        self._weights, self._checkpoint, self._packed, self._precision = weights, checkpoint, packed, precision
        self._own = {weight.name: weight for weight in weights if self._is_packed(weight)}
        self.layers: list[PackedLayer] = []
        self._orders = {name: tuple(map(self._order, weight.keys)) for name, weight in self._own.items()}
        self._columns = self._columns_by_weight()

    def weights(self) -> Iterator[Weight]:
        for weight in self._weights:
            if weight.name in self._own:
                yield from self._layer(weight)
            else:
                yield weight

    def _layer(self, weight: Weight) -> Iterator[PackedWeight]:
        """What a float weight [inputs, outputs] becomes, part by part."""
        name = weight.name.removesuffix(".weight")
        parts, block = list[PackedPart](), _block(self._packed.sizes[weight.keys[0]])
        for at, (keys, order) in enumerate(self._runs(weight)):
            outputs = sum(self._packed.sizes[key].outputs for key in keys)
            zeros = any(bool((self._packed.zeros(key) != _SHIFT).any()) for key in keys)
            parts.append(PackedPart(outputs, block, zeros, order is not None))
            yield from self._tensors(weight, f"{name}.parts.{at}", keys, parts[-1])
        self.layers.append(PackedLayer(name, tuple(parts)))

    def _tensors(self, weight: Weight, name: str, keys: Sequence[str], part: PackedPart) -> Iterator[PackedWeight]:
        inputs, floats = weight.shape[0], self._precision.dtype
        columns, blocks = self._columns.get(weight.name), inputs // part.block

        def one(kind: str, end: str, layout: Layout, shape: tuple[int, ...], dtype: str) -> PackedWeight:
            stored = tuple(f"{key.removesuffix('.weight')}.{end}" for key in keys)
            return PackedWeight(
                weight.component, f"{name}.{kind}", shape, layout, stored, dtype=dtype, block=part.block,
                columns_of=columns,
            )  # fmt: skip

        if part.has_order:
            yield one("order", "g_idx", Layout.ORDER, (inputs,), "int64")
        yield one("integers", "qweight", Layout.INTEGERS, (inputs, part.outputs), "int4")
        yield one("scale", "scales", Layout.SCALES, (blocks, part.outputs), floats)
        if part.has_zeros:
            kind = "int4" if self._precision.floating is Precision.FP32 else floats
            yield one("zeros", "qzeros", Layout.ZEROS, (blocks, part.outputs), kind)

    def _runs(self, weight: Weight) -> Iterator[tuple[tuple[str, ...], bytes | None]]:
        """Neighbouring matrices that take their inputs in one order; None where that is as they come."""
        run: tuple[str, ...] = ()
        before: bytes | None = None
        for key, order in zip(weight.keys, self._orders[weight.name], strict=True):
            if run and order != before:
                yield run, before
                run = ()
            run, before = (*run, key), order
        yield run, before

    def _order(self, key: str) -> bytes | None:
        order = self._packed.order(key)
        return None if order is None else order.numpy().tobytes()

    def _columns_by_weight(self) -> Mapping[str, str]:
        """The halves of gated MLPs → the matrix behind them, in whose order their outputs are computed.

        That costs nothing and changes no number: each column, with its scales and zero points, stands elsewhere.
        """
        found, biases = dict[str, str](), {weight.name for weight in self._weights}
        for name, orders in list(self._orders.items()):
            mlp = name.removesuffix("down.weight")
            halves = [f"{mlp}up.weight", f"{mlp}gate.weight"]
            if mlp == name or orders == (None,) or any(half not in self._own for half in halves):
                continue
            if any(f"{mlp}{half}.bias" in biases for half in ("up", "gate")):
                continue
            found |= dict.fromkeys(halves, self._own[name].keys[0])
            self._orders[name] = (None,)
        return found

    def _is_packed(self, weight: Weight) -> bool:
        """
        Raises:
            UnsupportedError: it is, and cannot be.
        """
        packed = [key for key in weight.keys if self._checkpoint.is_packed(key)]
        if not packed:
            return False
        folder = self._checkpoint.folder
        if weight.component is not Component.DECODER or weight.layout not in (Layout.TRANSPOSE, Layout.JOIN):
            raise UnsupportedError(
                f"{folder}: {packed[0]} is stored in 4 bits; only matrices of the decoder's layers may be, and this "
                "one is read as floats; export a checkpoint that leaves it so"
            )
        if len(packed) < len(weight.keys):
            other = next(key for key in weight.keys if key not in packed)
            raise UnsupportedError(
                f"{folder}: {packed[0]} is stored in 4 bits and {other}, which is computed with it, is not; export a "
                "checkpoint that has both so"
            )
        return True


def _block(sizes: Sizes) -> int:
    """Inputs that share a scale in the graph: as many as a group has, or a part of them."""
    block, group = _LARGEST_BLOCK, sizes.inputs // sizes.groups
    while group % block:
        block //= 2
    return block
