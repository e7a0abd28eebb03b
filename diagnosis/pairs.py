"""Two graphs of the same model in two precisions, node by node: what in one is what in the other."""

from ast import literal_eval
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.bundle.signature import SCOPES
from vlm_trt.calibration.cache import stores
from vlm_trt.calibration.tables import looks_up, restores
from vlm_trt.probing.widen import HALVES

FLOATING = (ir.DataType.FLOAT, *HALVES)
# What a precision adds: it changes how a value is stored, not which value it is.
_STORING = ("Cast", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Pair:
    """One value in both graphs."""

    node: str  # that makes it, in the found graph
    operator: str
    part: str  # of the model: "decoder.layers.3.mlp.down"
    expected: str  # its name in the graph that is right
    found: str  # and in the other one
    half: bool  # whether the other one stores it in half precision
    sources: tuple[int, ...]  # numbers of the pairs that it is made from


def pairs(component: Component, expected: ir.Model, found: ir.Model) -> tuple[Pair, ...]:
    """The floating-point values that both graphs compute, in the order they do.

    Both were traced from one module, so that they have the same nodes in the same order, but for those that store.

    Raises:
        VerificationError: they have not.
    """
    mine, other = _computing(expected), _computing(found)
    if [_kind(node) for node in mine] != [_kind(node) for node in other]:
        raise VerificationError(
            f"the two {component} graphs are not made of the same nodes, so they cannot be compared; export both again"
        )
    return tuple(_pairs(component, mine, other))


def _pairs(component: Component, expected: Sequence[ir.Node], found: Sequence[ir.Node]) -> Iterator[Pair]:
    numbers: dict[ir.Value, int] = {}
    for right, node in zip(expected, found, strict=True):
        makers = (_maker(value) for value in node.inputs if value is not None)
        sources = tuple(dict.fromkeys(numbers[value] for value in makers if value in numbers))
        for one, value in zip(right.outputs, node.outputs, strict=True):
            if one.dtype not in FLOATING or value.dtype not in FLOATING:  # the integers of a cache
                continue
            numbers[value] = len(numbers)
            stored = _stored(value)
            assert node.name and one.name and stored.name
            half = stored.dtype in HALVES
            yield Pair(node.name, node.op_type, _part(component, right), one.name, stored.name, half, sources)


def _computing(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if not _stores(node) and not looks_up(node)]


def _stores(node: ir.Node) -> bool:
    return node.op_type in _STORING or stores(node)


def _kind(node: ir.Node) -> str:
    """The operator; a Gemm without a bias is a product, and what is made of integers looked up was looked up."""
    if restores(node):
        return "Gather"
    return "MatMul" if node.op_type == "Gemm" else node.op_type


def _maker(value: ir.Value) -> ir.Value:
    """The value as it was computed, before it was stored."""
    producer = value.producer()
    while producer is not None and _stores(producer):
        source = producer.inputs[0]
        assert source is not None
        value, producer = source, source.producer()
    return value


def _stored(value: ir.Value) -> ir.Value:
    """The value as the nodes behind it take it: rounded, where a Cast to half precision is all that takes it."""
    uses = [use.node for use in value.uses()]
    if len(uses) == 1 and uses[0].op_type == "Cast" and uses[0].outputs[0].dtype in HALVES:
        return uses[0].outputs[0]
    return value


def _part(component: Component, node: ir.Node) -> str:
    """The module of the model that a node was traced from."""
    scopes = literal_eval(node.metadata_props.get(SCOPES, "['']"))
    return ".".join(part for part in (component.value, scopes[-2] if len(scopes) > 1 else "") if part)
