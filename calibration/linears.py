"""The matrix products of a graph: what can be quantized, and what they share."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlm_trt.bundle.component import Component
from vlm_trt.calibration.rounding import Floats, column_chunks

# What a head is called, also one that has its weights from the embeddings.
HEAD = "lm_head.weight"
_NORMS = ("RMSNormalization", "LayerNormalization")


@dataclass(frozen=True)
class Linear:
    """One product of an activation with a stored matrix of [inputs, outputs]."""

    name: str  # "decoder.layers.3.mlp.down": what a recipe's patterns are compared with
    node: str
    weight: str  # the initializer
    source: str  # the activation
    inputs: int
    outputs: int
    transposed: bool  # stored as [outputs, inputs]

    @property
    def scale_name(self) -> str:
        return f"{self.weight}.scale"


@dataclass(frozen=True)
class Fold:
    """The weights whose last axis is the activation's channels: divided, they divide it."""

    weight: str  # of a norm, [channels], or of a gated product's linear half, [inputs, channels]
    bias: str | None


@dataclass(frozen=True)
class Group:
    """Products of one activation: they share its scale, and the factors that balance it against their weights."""

    source: str
    linears: tuple[Linear, ...]
    fold: Fold | None  # None: made by something else, or read by something else too


def untied(model: ir.Model) -> ir.Model:
    """The graph, changed so that a matrix that is a table of embeddings too has a name of its own as a matrix.

    As one it can be quantized, where the table stays as it is; where it is not, both stay one place in the file.
    """
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "Gemm" else None
        if weight is None or weight.const_value is None or _own(weight, node):
            continue
        tensor = weight.const_value
        assert isinstance(tensor, ir.ExternalTensor), f"{weight.name} is used twice and lies inside the graph"
        matrix = ir.Value(name=HEAD, shape=weight.shape, type=weight.type, const_value=renamed(tensor, HEAD))
        model.graph.register_initializer(matrix)
        node.replace_input_with(1, matrix)
    return model


def renamed(tensor: ir.ExternalTensor, name: str) -> ir.ExternalTensor:
    """The same place in a file under another name."""
    return ir.ExternalTensor(
        tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=name,
        base_dir=tensor.base_dir,
    )  # fmt: skip


def find_linears(model: ir.Model, component: Component) -> tuple[Linear, ...]:
    """Every MatMul and bias-free Gemm whose second factor is a stored matrix, in graph order."""
    return tuple(_linears(model, component))


def find_groups(model: ir.Model, linears: tuple[Linear, ...]) -> tuple[Group, ...]:
    """The products by the activation they take, in graph order."""
    sources = dict.fromkeys(linear.source for linear in linears)
    groups = []
    for source in sources:
        own = tuple(linear for linear in linears if linear.source == source)
        readers: set[str | None] = {linear.node for linear in own}
        groups.append(Group(source, own, _fold(model, source, readers)))
    return tuple(groups)


def matrix_columns(tensor: ir.TensorProtocol, linear: Linear) -> Iterator[tuple[slice, Floats]]:
    """The matrix in fp32 as [inputs, some outputs], in order."""
    stored = tensor.numpy()
    for columns in column_chunks(linear.inputs, linear.outputs):
        part = stored[columns].T if linear.transposed else stored[:, columns]
        yield columns, np.ascontiguousarray(part, dtype=np.float32)


def _linears(model: ir.Model, component: Component) -> Iterator[Linear]:
    for node in model.graph:
        if node.op_type not in ("MatMul", "Gemm") or len(node.inputs) != 2:
            continue
        source, weight = node.inputs
        if source is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        if not _own(weight, node):
            continue
        rows, columns = weight.const_value.shape.numpy()
        transposed = node.op_type == "Gemm"
        assert not transposed or node.attributes["transB"].as_int() == 1, f"{node.name}: a Gemm of another kind"
        assert source.name and weight.name and node.name
        yield Linear(
            name=f"{component}.{weight.name.removesuffix('.weight')}",
            node=node.name,
            weight=weight.name,
            source=source.name,
            inputs=columns if transposed else rows,
            outputs=rows if transposed else columns,
            transposed=transposed,
        )


def _fold(model: ir.Model, source: str, readers: set[str | None]) -> Fold | None:
    """What makes an activation that only those nodes read, if it is a norm or a gated product (SwiGLU).

    In half precision norms compute in fp32, and a Cast lies between.
    """
    made = next((node for node in model.graph if any(value.name == source for value in node.outputs)), None)
    if made is not None and made.op_type == "Cast" and _only_read_by(made.outputs[0], readers):
        assert made.inputs[0] is not None
        readers = {made.name}
        made = made.inputs[0].producer()
    if made is None or not _only_read_by(made.outputs[0], readers):
        return None
    if made.op_type in _NORMS:
        weight, bias = made.inputs[1], made.inputs[2] if len(made.inputs) > 2 else None
        if weight is None or not all(_own(value, made) for value in (weight, bias) if value is not None):
            return None
        return Fold(str(weight.name), None if bias is None else bias.name)
    if made.op_type == "Mul":
        for value in made.inputs:
            half = None if value is None else value.producer()
            if half is None or half.op_type != "MatMul" or not _only_read_by(half.outputs[0], {made.name}):
                continue
            weight = half.inputs[1]
            if weight is not None and weight.const_value is not None and _own(weight, half):
                return Fold(str(weight.name), None)
    return None


def _own(value: ir.Value, node: ir.Node) -> bool:
    """Whether a weight is that node's alone."""
    return _only_read_by(value, {node.name})


def _only_read_by(value: ir.Value, readers: set[str | None]) -> bool:
    return not value.is_graph_output() and {use.node.name for use in value.uses()} == readers
