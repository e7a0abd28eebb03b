"""Nodes and weights put into a graph in the place of others."""

import onnx_ir as ir


def take_over(model: ir.Model, old: ir.Node, new: tuple[ir.Node, ...]) -> None:
    """The new nodes in the place of the old one; the last of them makes its output."""
    made, output = old.outputs[0], new[-1].outputs[0]
    output.name, output.shape, output.type = made.name, made.shape, made.type
    model.graph.insert_before(old, new)
    made.replace_all_uses_with(output, replace_graph_outputs=True)
    model.graph.remove(old, safe=True)


def call(node: ir.Node, name: str, dtype: ir.DataType) -> None:
    """Gives what a node makes its name and type."""
    node.outputs[0].name, node.outputs[0].dtype = name, dtype


def initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new weight of the graph."""
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
