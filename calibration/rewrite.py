"""A graph with some of its matrices as integers: DequantizeLinear before the products, and for W8A8 QuantizeLinear too.

Operators of `ai.onnx` alone: ONNX Runtime fuses them into its integer kernels when it loads the graph, TensorRT when it
builds the engine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.signature import ZERO_POINTS
from vlm_trt.calibration.cache import round_cache
from vlm_trt.calibration.editing import call, initializer, take_over
from vlm_trt.calibration.linears import Group, Linear, matrix_columns, renamed
from vlm_trt.calibration.recipe import Kind
from vlm_trt.calibration.rounding import (
    FP8,
    FP8_MAX,
    INT8_MAX,
    Floats,
    Quantized,
    as_fp8,
    by_block,
    by_output,
    fitting_block,
    fp8,
    smallest_normal,
)
from vlm_trt.calibration.tables import find_table, replace_table
from vlm_trt.calibration.weight_file import Weights

_STORED = {Kind.INT4: ir.DataType.INT4, Kind.FP8: ir.DataType.FLOAT8E4M3FN}


@dataclass(frozen=True)
class Treatment:
    """What becomes of one matrix."""

    linear: Linear
    kind: Kind  # not FLOAT
    block: int | None = None  # for INT4

    def stored_bytes(self, scale_bytes: int) -> int:
        """Of its integers and scales, where a scale has so many."""
        values, blocks = self.linear.inputs * self.linear.outputs, 1
        if self.block is not None:
            values, blocks = -(-values // 2), self.linear.inputs // self.block
        return values + self.linear.outputs * blocks * scale_bytes


def treatment(linear: Linear, kind: Kind, block: int) -> Treatment | None:
    """What becomes of a matrix that is to be of that kind; 8 bits where no block divides its inputs, None for float."""
    if kind is not Kind.INT4:
        return None if kind is Kind.FLOAT else Treatment(linear, kind)
    fitting = fitting_block(linear.inputs, block)
    return Treatment(linear, Kind.INT8_WEIGHT) if fitting is None else Treatment(linear, kind, fitting)


@dataclass(frozen=True)
class Activation:
    """What is known of one activation from the samples."""

    rows: Floats  # some of its values, [rows, channels]
    importance: Floats  # mean square per channel
    limit: float  # the largest magnitude to be shown, where it is rounded itself

    def scale(self, kind: Kind, dtype: Any) -> float:
        """Of its 8-bit numbers, as the graph stores it."""
        scale = self.limit / (FP8_MAX if kind is Kind.FP8 else INT8_MAX)
        return float(np.array(max(scale, smallest_normal(dtype)), dtype))


@dataclass(frozen=True)
class Plan:
    """Everything that is to be done to one graph."""

    groups: tuple[Group, ...]
    treatments: tuple[Treatment, ...]
    factors: Mapping[str, Floats] = field(default_factory=dict)  # source → what its channels are divided by
    activations: Mapping[str, Activation] = field(default_factory=dict)  # source → after that division
    cache: Mapping[str, Floats] = field(default_factory=dict)  # source → what its channels reach, to have 8 bits


@dataclass(frozen=True)
class LayerError:
    """How far one product is from what it was."""

    layer: str
    kind: Kind
    error: float  # relative: of the product on sampled activations, or of the matrix where there are no samples
    float_bytes: int
    quantized_bytes: int


def rewrite(model: ir.Model, plan: Plan, file: Weights) -> tuple[LayerError, ...]:
    """Changes the graph and places its weights; the error of every quantized product.

    One matrix is in memory at a time, as integers, and a part of it as floats. The same graph and plan give the same
    bytes on every processor: values are multiplied, divided and rounded one by one, and sums of errors, which choose
    between 4-bit scales, are added in one order.

    Args:
        model: the graph, loaded with its weights mapped; changed in place.
        plan: what is to be done to it.
        file: beside where the graph will lie, or lies.
    """
    treatments = {one.linear.weight: one for one in plan.treatments}
    folded, taken = _folded(plan), _taken(plan)
    outside = {n for n, v in model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    assert folded.keys() <= outside, f"weights inside the graph would be left undivided: {folded.keys() - outside}"
    table, errors = find_table(model), []
    placed: dict[tuple[str, int | None], ir.ExternalTensor] = {}  # by where the tensor lay before
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        assert tensor is not None
        if name in treatments:
            errors.append(_replace(model, value, treatments[name], plan, folded.get(name), file))
        elif table is not None and name == table.weight:
            replace_table(model, value, table, file)
        elif isinstance(tensor, ir.ExternalTensor):
            place, changed = (str(tensor.location), tensor.offset), name in taken or name in folded
            if place in placed and not changed:
                value.const_value = renamed(placed[place], name)
                continue
            values = _left_in_float(tensor, taken.get(name), folded.get(name))
            value.const_value = stored = file.append(name, values, tensor.dtype)
            if not changed:
                placed[place] = stored
    _quantize_activations(model, plan)
    round_cache(model, plan.cache, file)
    return tuple(errors)


def _folded(plan: Plan) -> dict[str, Floats]:
    """Weights and biases → what their last axis is divided by."""
    return {
        name: plan.factors[group.source]
        for group in plan.groups
        if group.fold is not None and group.source in plan.factors
        for name in (group.fold.weight, group.fold.bias)
        if name is not None
    }


def _taken(plan: Plan) -> dict[str, Floats]:
    """Matrices → what they are multiplied by, so that it meets their inputs."""
    return {
        linear.weight: plan.factors[group.source] if linear.transposed else plan.factors[group.source][:, None]
        for group in plan.groups
        if group.source in plan.factors
        for linear in group.linears
    }


def _left_in_float(tensor: ir.TensorProtocol, factors: Floats | None, divisors: Floats | None) -> NDArray[Any]:
    """A weight that is not quantized, with its side of every balance."""
    values = tensor.numpy()
    if factors is None and divisors is None:
        return values
    found = values.astype(np.float32) * (1 if factors is None else factors) / (1 if divisors is None else divisors)
    assert np.isfinite(found.astype(values.dtype)).all(), f"{tensor.name} leaves the range of its type"
    return found.astype(values.dtype)


def _replace(
    model: ir.Model, value: ir.Value, treatment: Treatment, plan: Plan, divisors: Floats | None, file: Weights
) -> LayerError:
    """Writes one matrix as integers and puts DequantizeLinear between it and its product."""
    linear, tensor = treatment.linear, value.const_value
    assert tensor is not None and value.name
    done, error = _quantized(tensor, treatment, plan, divisors)
    scales = done.scales.astype(tensor.dtype.numpy())
    integers = initializer(
        model,
        f"{linear.weight}.integers",
        file.append(value.name, done.values, _STORED.get(treatment.kind, ir.DataType.INT8)),
    )
    stored = file.append(linear.scale_name, scales, tensor.dtype)
    scale = initializer(model, linear.scale_name, stored)
    attributes = {"axis": 1} if done.block is None else {"axis": 0, "block_size": done.block}
    zeros = []
    if _on_integer_kernels(plan, tensor.dtype):
        name = f"{linear.weight}{ZERO_POINTS}"  # of each matrix: of shared ones ONNX Runtime makes one name twice
        stored = file.append(name, np.zeros(scales.shape, np.int8), ir.DataType.INT8)
        zeros.append(initializer(model, name, stored))
    restored = ir.node("DequantizeLinear", [integers, scale, *zeros], attributes, name=f"{linear.node}_weight")
    call(restored, f"{linear.weight}.restored", tensor.dtype)
    node = next(node for node in model.graph if node.name == linear.node)
    source = node.inputs[0]
    assert source is not None
    product = ir.node("MatMul", [source, restored.outputs[0]], name=linear.node)
    take_over(model, node, (restored, product))
    del model.graph.initializers[value.name]
    assert isinstance(integers.const_value, ir.ExternalTensor) and integers.const_value.length is not None
    size = integers.const_value.length + scales.nbytes
    return LayerError(linear.name, treatment.kind, error, tensor.nbytes, size)


def _on_integer_kernels(plan: Plan, dtype: ir.DataType) -> bool:
    """Whether ONNX Runtime multiplies 8 bits by 8 in that graph: where it then makes unsigned integers of signed ones
    (`runtime/ort.py`), it gives weights without zero points a single one, and refuses it."""
    return dtype is ir.DataType.FLOAT and any(one.kind is Kind.INT8 for one in plan.treatments)


def _quantized(
    tensor: ir.TensorProtocol, treatment: Treatment, plan: Plan, divisors: Floats | None
) -> tuple[Quantized, float]:
    """The matrix as integers, made some outputs at a time, and the relative error."""
    linear = treatment.linear
    known, factors = plan.activations.get(linear.source), plan.factors.get(linear.source)
    values = np.empty((linear.inputs, linear.outputs), FP8 if treatment.kind is Kind.FP8 else np.int8)
    scales, squares = [], np.zeros(2)
    for columns, matrix in matrix_columns(tensor, linear):
        if factors is not None:
            matrix = matrix * factors[:, None]
        if divisors is not None:
            matrix = matrix / divisors[columns]
        done = rounded(matrix, treatment, known, tensor.dtype.numpy())
        values[:, columns] = done.values
        scales.append(done.scales)
        squares += squared_error(matrix, done, treatment.kind, known)
    joined = Quantized(values, np.concatenate(scales, axis=-1), treatment.block)
    return joined, float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0


def rounded(matrix: Floats, treatment: Treatment, known: Activation | None, dtype: Any) -> Quantized:
    """Some columns of a matrix as integers."""
    if treatment.kind is Kind.FP8:
        return as_fp8(matrix, dtype)
    if treatment.kind is not Kind.INT4:
        return by_output(matrix, dtype)
    assert treatment.block is not None
    return by_block(matrix, treatment.block, None if known is None else known.importance, dtype)


def squared_error(matrix: Floats, done: Quantized, kind: Kind, known: Activation | None) -> Floats:
    """Σ of squared errors, and of squares, of the product with the sampled rows; of the matrix where there are none."""
    restored = done.floats()
    if known is None:
        return np.array([np.square(matrix - restored).sum(), np.square(matrix).sum()])
    right = known.rows @ matrix
    rows = _as_shown(known, kind) if kind.rounds_activations else known.rows
    return np.array([np.square(right - rows @ restored).sum(), np.square(right).sum()])


def _as_shown(known: Activation, kind: Kind) -> Floats:
    """The sampled rows as 8 bits show them."""
    scale = known.scale(kind, np.float32)
    if kind is Kind.FP8:
        return np.asarray(fp8(known.rows / scale).astype(np.float32) * scale)
    return np.asarray(np.clip(np.rint(known.rows / scale), -INT8_MAX - 1, INT8_MAX) * scale, dtype=np.float32)


def _quantize_activations(model: ir.Model, plan: Plan) -> None:
    """QuantizeLinear and DequantizeLinear between an activation and the products that take it in 8 bits."""
    kinds = {one.linear.node: one.kind for one in plan.treatments if one.kind.rounds_activations}
    for group in plan.groups:
        for kind in sorted({kinds[linear.node] for linear in group.linears if linear.node in kinds}):
            readers = [linear.node for linear in group.linears if kinds.get(linear.node) is kind]
            nodes = [node for node in model.graph if node.name in readers]
            _quantize_activation(model, group.source, plan.activations[group.source], kind, nodes)


def _quantize_activation(model: ir.Model, name: str, known: Activation, kind: Kind, nodes: list[ir.Node]) -> None:
    """Between one activation and those products of it."""
    source, name = nodes[0].inputs[0], f"{name}.{kind}"
    assert source is not None and source.dtype is not None
    dtype = source.dtype.numpy()
    scale = initializer(model, f"{name}.scale", ir.tensor(np.array(known.scale(kind, dtype), dtype)))
    zero = initializer(model, f"{name}.zero", ir.tensor(_zero(kind, source.dtype)))
    down = ir.node("QuantizeLinear", [source, scale, zero], name=f"{name}_quantize")
    assert zero.dtype is not None
    call(down, f"{name}.shown", zero.dtype)
    up = ir.node("DequantizeLinear", [down.outputs[0], scale, zero], name=f"{name}_dequantize")
    call(up, f"{name}.restored", source.dtype)
    model.graph.insert_before(nodes[0], (down, up))
    for node in nodes:
        node.replace_input_with(0, up.outputs[0])


def _zero(kind: Kind, dtype: ir.DataType) -> Any:
    """The number that stands for 0. TensorRT takes signed integers only; ONNX Runtime's kernels for x86 want unsigned
    ones, and its own conversion leaves out what several products share. Both stand for the same values.
    """
    if kind is Kind.FP8:
        return np.array(0, FP8)
    return np.array(128, np.uint8) if dtype is ir.DataType.FLOAT else np.array(0, np.int8)
