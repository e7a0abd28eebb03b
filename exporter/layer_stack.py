"""A graph of many layers from a trace of a few: tracing takes seconds for each, and most layers are alike.

Of layers that are alike two are traced. The first may hold what all of them share (a shape, a constant), so the second
is the one that is copied for all later ones.
"""

import re
from ast import literal_eval
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import onnx_ir as ir
from torch import nn

from vlm_trt.bundle.signature import SCOPES, Signature

_TRACED_OF_A_KIND = 2


def shorten(module: nn.Module) -> tuple[int, ...]:
    """Leaves two of those layers that are alike; for each layer there was, the place of the one that it looks like.

    Nothing is left out of a module without a stack of `layers`.
    """
    layers = getattr(module, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return ()
    kinds = [_likeness(layer) for layer in layers]
    kept = [index for index, kind in enumerate(kinds) if kinds[:index].count(kind) < _TRACED_OF_A_KIND]
    last = {kinds[index]: place for place, index in enumerate(kept)}
    module.layers = nn.ModuleList(layers[index] for index in kept)
    return tuple(kept.index(index) if index in kept else last[kind] for index, kind in enumerate(kinds))


def _likeness(layer: nn.Module) -> str:
    """Equal for two layers whose forward passes are: modules, what they were made with, and shapes of parameters."""
    assert not any(True for _ in layer.buffers()), "what a buffer holds is not compared"
    made = [
        (name, type(part), sorted((key, value) for key, value in vars(part).items() if not key.startswith("_")))
        for name, part in layer.named_modules()
    ]
    return repr((made, [(name, tuple(value.shape), value.dtype) for name, value in layer.named_parameters()]))


def restored(short: ir.Model, looks_like: Sequence[int], contract: Signature) -> ir.Model:
    """The graph of all layers: the nodes that tracing all of them makes, under other names within the layers.

    Args:
        short: traced of a shortened module; inputs, outputs and weights of a layer have its number in their names.
        looks_like: for each layer of the whole module, the place of the traced one.
        contract: inputs and outputs of the whole graph.
    """
    before, layers, behind = _by_layer(short.graph)
    assert len(layers) == max(looks_like) + 1, f"{len(layers)} layers traced"
    residuals = [_residual(layer, copied=looks_like.count(place) > 1) for place, layer in enumerate(layers)]
    given = residuals[-1].name
    if not behind:  # the last of all layers makes what the graph gives, and not the last of those traced
        residuals[-1].name = f"{given}_within"
    copies = _Copies()
    copies.add(before)
    for index, place in enumerate(looks_like):
        if index:
            copies.values[residuals[place - 1]] = copies.values[residuals[looks_like[index - 1]]]
        copies.add(layers[place], _Number(place, index, again=place in looks_like[:index]))
    end = copies.values[residuals[looks_like[-1]]]
    copies.values[residuals[-1]] = end
    copies.add(behind)
    if not behind:
        end.name = given
    named = copies.outer | {str(value.name): value for node in copies.nodes for value in node.outputs}
    inputs = [named[tensor.name] for tensor in contract.inputs]
    graph = ir.Graph(
        inputs,
        [named[tensor.name] for tensor in contract.outputs],
        nodes=copies.nodes,
        initializers=[value for value in copies.outer.values() if value not in inputs],
        opset_imports=dict(short.graph.opset_imports),
    )
    return ir.Model(graph, ir_version=short.ir_version)


def _by_layer(graph: ir.Graph) -> tuple[list[ir.Node], list[list[ir.Node]], list[ir.Node]]:
    """The nodes before the layers, those of each layer, and those behind them."""
    runs = [(layer, list(nodes)) for layer, nodes in groupby(graph, _layer_of)]
    before = runs.pop(0)[1] if runs[0][0] is None else []
    behind = runs.pop()[1] if runs[-1][0] is None else []
    order = [layer for layer, _ in runs]
    assert order == list(range(len(runs))), f"nodes of layers in the order {order}"
    return before, [nodes for _, nodes in runs], behind


def _layer_of(node: ir.Node) -> int | None:
    scopes: Sequence[str] = literal_eval(node.metadata_props.get(SCOPES, "[]"))
    return next((int(scope.removeprefix("layers.")) for scope in scopes if re.fullmatch(r"layers\.\d+", scope)), None)


def _residual(layer: Sequence[ir.Node], *, copied: bool) -> ir.Value:
    """What a layer hands to the next one: its last value, and the only one, where the layer is to be copied."""
    own, last = set(layer), layer[-1].outputs[0]
    for value in (value for node in layer for value in node.outputs):
        outside = any(user not in own for user in value.consumers())
        assert not outside or value is last or not copied, f"{value.name} is used behind its layer"
    return last


@dataclass(frozen=True)
class _Number:
    """The layer that a traced one becomes."""

    traced: int
    index: int
    again: bool  # after another that was made of the same one

    def of(self, name: str) -> str:
        """The same name in this layer, of what has the layer's number in it."""
        return re.sub(rf"\b(layers|past_key_values|present)\.{self.traced}\b", rf"\1.{self.index}", name)

    def own(self, name: str) -> str:
        """The same name in this layer."""
        renamed = self.of(name)
        return f"{name}_of_layer_{self.index}" if self.again and renamed == name else renamed


class _Copies:
    """The nodes of a graph, each written as often as it is wanted."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.values: dict[ir.Value, ir.Value] = {}  # the latest copy
        self.outer: dict[str, ir.Value] = {}  # inputs and weights

    def add(self, nodes: Iterable[ir.Node], number: _Number | None = None) -> None:
        """Copies of those nodes, behind all others, as nodes of that layer."""
        for node in nodes:
            own = str if number is None else number.own
            copy = ir.Node(
                node.domain,
                node.op_type,
                [None if value is None else self._read(value, number) for value in node.inputs],
                list(node.attributes.values()),
                outputs=[_copy(value, own(str(value.name))) for value in node.outputs],
                name=own(str(node.name)),
                metadata_props={SCOPES: own(node.metadata_props[SCOPES])} if SCOPES in node.metadata_props else {},
            )
            self.values.update(zip(node.outputs, copy.outputs, strict=True))
            self.nodes.append(copy)

    def _read(self, value: ir.Value, number: _Number | None) -> ir.Value:
        if value.producer() is not None:
            return self.values[value]
        name = str(value.name) if number is None else number.of(str(value.name))
        if name not in self.outer:
            self.outer[name] = _copy(value, name)
        return self.outer[name]


def _copy(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type, const_value=value.const_value)
