"""The table of embeddings in 8 bits, a scale per row: a step looks up one of each token, and multiplies it back.

In graphs for ONNX Runtime (`Precision.table_dtype`); TensorRT looks up no integers.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlm_trt.calibration.editing import call, initializer, take_over
from vlm_trt.calibration.rounding import by_output, column_chunks
from vlm_trt.calibration.weight_file import Weights

TABLE = "embedding.weight"
_ROW = f"{TABLE}.row"  # what the values between are called


@dataclass(frozen=True)
class Table:
    """A stored matrix whose rows are looked up."""

    node: str
    weight: str  # the initializer
    rows: int
    width: int


def find_table(model: ir.Model) -> Table | None:
    """The table of a graph in fp32, if it has one."""
    for node in model.graph:
        weight = node.inputs[0] if node.op_type == "Gather" else None
        if weight is None or weight.name != TABLE or weight.const_value is None:
            continue
        tensor = weight.const_value
        assert node.name and {use.node for use in weight.uses()} == {node}, "a head that shares it is untied"
        rows, width = tensor.shape.numpy()
        return Table(node.name, TABLE, rows, width) if tensor.dtype is ir.DataType.FLOAT else None
    return None


def looks_up(node: ir.Node) -> bool:
    """Whether it looks up integers or a scale, of which another node makes what was looked up."""
    source = node.inputs[0] if node.op_type == "Gather" else None
    return source is not None and source.name in (f"{TABLE}.integers", f"{TABLE}.scale")


def restores(node: ir.Node) -> bool:
    """Whether it makes what the float graph looks up."""
    return node.op_type == "Mul" and all(one is not None and str(one.name).startswith(_ROW) for one in node.inputs)


def replace_table(model: ir.Model, value: ir.Value, table: Table, file: Weights) -> None:
    """Writes the table as integers, and looks up scales beside them.

    Args:
        model: the graph, changed in place.
        value: the table's initializer.
        table: what `find_table` said of it.
        file: where its numbers go.
    """
    tensor, name = value.const_value, table.weight
    assert tensor is not None
    stored = tensor.numpy()
    integers, scales = np.empty((table.rows, table.width), np.int8), np.empty((table.rows, 1), np.float32)
    for rows in column_chunks(table.width, table.rows):
        done = by_output(np.ascontiguousarray(stored[rows].T))
        integers[rows], scales[rows, 0] = done.values.T, done.scales
    placed = initializer(model, f"{name}.integers", file.append(name, integers, ir.DataType.INT8))
    scale_name = f"{name}.scale"
    scale = initializer(model, scale_name, file.append(scale_name, scales, ir.DataType.FLOAT))
    node = next(node for node in model.graph if node.name == table.node)
    ids = node.inputs[1]
    assert ids is not None
    row = ir.node("Gather", [placed, ids], name=table.node)
    call(row, _ROW, ir.DataType.INT8)
    step = ir.node("Gather", [scale, ids], name=f"{table.node}_scale")
    call(step, f"{_ROW}_scale", ir.DataType.FLOAT)
    floats = ir.node("Cast", [row.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{table.node}_cast")
    call(floats, f"{_ROW}_floats", ir.DataType.FLOAT)
    restored = ir.node("Mul", [floats.outputs[0], step.outputs[0]], name=f"{table.node}_restored")
    take_over(model, node, (row, step, floats, restored))
    del model.graph.initializers[name]
