"""Nodes of a half-precision graph that compute in fp32, between casts that say where values are rounded."""

from collections.abc import Collection

import onnx_ir as ir

HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# They have a type of their own accord, or move a cache in place.
LEFT = ("Cast", "Constant", "ConstantOfShape", "TensorScatter")


def round_as_stored(model: ir.Model) -> None:
    """Every value of half precision is rounded to it, as on a GPU; changes the graph.

    ONNX Runtime on the CPU has few kernels for half precision. It computes in fp32 and leaves out the casts between two
    nodes, so that a value beyond fp16's range, infinite on a GPU, goes on as if nothing were wrong. It keeps the casts
    that stand in the graph.
    """
    widen(model, {node.name for node in model.graph if node.name})


def widen(model: ir.Model, nodes: Collection[str], unrounded: Collection[str] = ()) -> None:
    """Those nodes take and make fp32; changes the graph.

    Args:
        model: of half precision.
        nodes: names of nodes; those that compute nothing in half precision stay as they are.
        unrounded: names of values that pass in fp32 from one of the nodes to others; all others that the nodes make are
            rounded as before, under their names.
    """
    wide: dict[ir.Value, ir.Value] = {}
    passed = set[ir.Node]()
    for node in list(model.graph):
        passed.add(node)
        if node.name not in nodes or node.op_type in LEFT:
            continue
        for at, value in enumerate(node.inputs):
            if value is not None and value.dtype in HALVES:
                if value not in wide:
                    wide[value] = _cast_before(model, node, value, passed)
                node.replace_input_with(at, wide[value])
        for value in list(node.outputs):
            if value.dtype not in HALVES:
                continue
            if value.name in unrounded:
                assert not value.is_graph_output(), f"{value.name} has the type of the contract"
                value.dtype = ir.DataType.FLOAT
            else:
                _round_after(model, node, value)


def _cast_before(model: ir.Model, node: ir.Node, value: ir.Value, passed: Collection[ir.Node]) -> ir.Value:
    """The value in fp32; where an island takes it so already, that cast, before the node."""
    name = f"{value.name}_widen"
    for use in value.uses():
        if use.node.op_type == "Cast" and use.node.name == name:
            if use.node not in passed:
                model.graph.remove(use.node)
                model.graph.insert_before(node, use.node)
            return use.node.outputs[0]
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=name)
    cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}.wide", ir.DataType.FLOAT
    cast.outputs[0].shape = value.shape
    model.graph.insert_before(node, cast)
    return cast.outputs[0]


def _round_after(model: ir.Model, node: ir.Node, value: ir.Value) -> None:
    """A Cast that makes what the node made before, under the same name."""
    assert value.dtype is not None
    cast = ir.node("Cast", [value], {"to": value.dtype}, name=f"{value.name}_round")
    rounded = cast.outputs[0]
    rounded.name, rounded.shape, rounded.type = value.name, value.shape, value.type
    value.replace_all_uses_with(rounded, replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    value.name, value.type = f"{value.name}.unrounded", ir.TensorType(ir.DataType.FLOAT)
    model.graph.insert_after(node, cast)


def widened(model: ir.Model) -> tuple[set[str], set[str]]:
    """The nodes, and the unrounded values, that `widen` was told when it made this graph; nothing where it did not."""
    nodes = set[str]()
    for node in model.graph:
        if node.op_type != "Cast" or node.name is None or node.inputs[0] is None:
            continue
        taken, made, name = node.inputs[0].name, node.inputs[0].producer(), node.outputs[0].name
        if node.name == f"{name}_round" and taken == f"{name}.unrounded" and made is not None and made.name:
            nodes.add(made.name)
        elif node.name == f"{taken}_widen":
            nodes |= {use.node.name for use in node.outputs[0].uses() if use.node.name}
    for node in model.graph:  # within an island no cast says so: who takes what was not rounded belongs to it
        taken_wide = any(
            value is not None
            and value.dtype == ir.DataType.FLOAT
            and (made := value.producer()) is not None
            and made.name in nodes
            and not str(value.name).endswith(".unrounded")
            for value in node.inputs
        )
        if taken_wide and node.name and node.op_type not in LEFT:
            nodes.add(node.name)
    makers = (node for node in model.graph if node.name in nodes)
    made_wide = (value.name for node in makers for value in node.outputs if value.name)
    return nodes, {name for name in made_wide if not name.endswith(".unrounded")}
