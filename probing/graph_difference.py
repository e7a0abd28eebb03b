"""Whether two graphs compute the same, node by node, attribute by attribute, constant by constant.

Nodes are compared as terms: an operator with its attributes, of what it takes. Neither order nor names of values and
nodes matter; weights outside the file are told apart by name, type, shape and place, constants inside by their bytes.
"""

from ast import literal_eval
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from vlm_trt.bundle.errors import BundleError
from vlm_trt.bundle.signature import SCOPES

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_TENSORS = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)


@dataclass(frozen=True)
class Difference:
    """What one graph has instead of what the other one has, as sentences without an end."""

    constants: int  # attributes of nodes and constants inside the file that were compared
    sentences: tuple[str, ...]


def read_graph(path: Path) -> ir.Model:
    """The graph of that file, its weights left outside.

    Raises:
        BundleError: no ONNX file, or one that readers may understand in different ways.
    """
    try:
        model = ir.load(path)
        stored = type(ir.to_proto(model)).FromString(path.read_bytes())
    except Exception as error:  # the protobuf reader has an exception of its own for every kind of damage
        raise BundleError(f"{path} is no ONNX file ({type(error).__name__}); export the checkpoint again") from error
    names = [tensor.name for tensor in stored.graph.initializer]
    if len(names) != len(set(names)) or stored.graph.sparse_initializer or stored.functions or stored.training_info:
        raise BundleError(
            f"{path} holds two tensors of one name, sparse ones, functions or a training graph, none of which is ever "
            "exported; export the checkpoint again"
        )
    return model


def difference(expected: ir.Model, found: ir.Model) -> Difference:
    """How a graph differs from the one it should be; the same where there are no sentences.

    A node that is changed is compared further as if it were not, so that each sentence is about another change.
    """
    expected = ir.from_proto(ir.to_proto(expected))  # its attributes as a file has them
    sentences = [*_outside(expected, found), *_Comparison(expected, found).sentences()]
    inside = sum(not isinstance(one.const_value, ir.ExternalTensor) for one in found.graph.initializers.values())
    return Difference(sum(len(node.attributes) for node in found.graph) + inside, tuple(sentences))


def _outside(expected: ir.Model, found: ir.Model) -> Iterator[str]:
    """What the graph is between, and its references to weights."""
    if expected.opset_imports != found.opset_imports:
        yield f"its operator sets are {dict(found.opset_imports)} instead of {dict(expected.opset_imports)}"
    for what, right, mine in (
        ("inputs", expected.graph.inputs, found.graph.inputs),
        ("outputs", expected.graph.outputs, found.graph.outputs),
    ):
        if changed := [one for one in zip(map(_typed, mine), map(_typed, right), strict=False) if one[0] != one[1]]:
            yield f"its {what} have {changed[0][0]} instead of {changed[0][1]}"
        if len(right) != len(mine):
            yield f"it has {len(mine)} {what} instead of {len(right)}"
    references, others = _references(expected), _references(found)
    for name in references.keys() | others.keys():
        right_place, place = references.get(name), others.get(name)
        if place is None:
            yield f"the weight {name} does not lie in the file of weights"
        elif right_place is None:
            yield f"the weight {name!r} is none of the model's"
        elif place != right_place:
            yield f"the weight {name} is {_placed(place)} instead of {_placed(right_place)}"


def _typed(value: ir.Value) -> str:
    return f"{value.name} {value.dtype} {[str(axis) for axis in value.shape or ()]}"


Reference = tuple[str, tuple[int, ...], str, int | None, int | None]


def _references(model: ir.Model) -> dict[str, Reference]:
    """Weights outside the file: type, shape, file, offset and length."""
    stored = ((name, value.const_value) for name, value in model.graph.initializers.items())
    return {
        name: (str(tensor.dtype), tuple(tensor.shape.numpy()), str(tensor.location), tensor.offset, tensor.length)
        for name, tensor in stored
        if isinstance(tensor, ir.ExternalTensor)
    }


def _placed(reference: Reference) -> str:
    dtype, shape, file, offset, length = reference
    return f"{dtype} {list(shape)} at byte {offset} of {file!r} ({length} bytes)"


class _Comparison:
    def __init__(self, expected: ir.Model, found: ir.Model) -> None:
        self._expected, self._found = expected, found
        self._numbers: dict[Hashable, int] = {}
        self._pending: dict[Hashable, list[ir.Node]] = defaultdict(list)  # by term: the model's nodes not met yet
        self._by_name: dict[str | None, ir.Node] = {}
        self._right: dict[ir.Value | None, int] = self._leaves(expected)
        self._mine: dict[ir.Value | None, int] = self._leaves(found)
        self._alien: set[int] = set()  # values that the model does not have

    def sentences(self) -> Iterator[str]:
        for node in self._expected.graph:
            term = self._term(node, self._right)
            self._pending[term].append(node)
            self._by_name[node.name] = node
            for at, value in enumerate(node.outputs):
                self._right[value] = self._number(("output", self._number(term), at))
        for node in self._found.graph:
            yield from self._met(node)
        for node in (node for nodes in self._pending.values() for node in nodes):
            yield f"{_called(node)} of the model is missing"
        for right, mine in zip(self._expected.graph.outputs, self._found.graph.outputs, strict=False):
            number = self._mine.get(mine)
            if number != self._right[right] and number not in self._alien:
                yield f"the output {right.name} is {_shown(mine)} instead of {_shown(right)}"
        for name, value in self._found.graph.initializers.items():
            if not value.uses() and not value.is_graph_output():
                yield f"nothing takes the constant {name!r}"

    def _met(self, node: ir.Node) -> Iterator[str]:
        """Compares one node, and takes its outputs for those of the model's that it stands for."""
        term = self._term(node, self._mine)
        twin: ir.Node | None = None
        if self._pending[term]:
            twin = self._pending[term].pop(0)
            self._by_name.pop(twin.name, None)
        elif self._known(node):
            twin = self._stands_for(node)
            yield f"{_called(node)} is no part of the model" if twin is None else self._changed(node, twin)
        else:
            twin = self._stands_for(node)
        for at, value in enumerate(node.outputs):
            if twin is not None and at < len(twin.outputs):
                self._mine[value] = self._right[twin.outputs[at]]
            else:
                self._mine[value] = self._number(("alien", value))
                self._alien.add(self._mine[value])

    def _known(self, node: ir.Node) -> bool:
        """Whether all that the node takes is the model's: what is behind another change needs no sentence."""
        return not any(self._mine.get(value) in self._alien for value in node.inputs)

    def _stands_for(self, node: ir.Node) -> ir.Node | None:
        """The model's node that this one was before it was changed, by its name."""
        twin = self._by_name.get(node.name)
        if twin is None or twin.op_type != node.op_type:
            return None
        del self._by_name[twin.name]
        self._pending[self._term(twin, self._right)].remove(twin)
        return twin

    def _changed(self, node: ir.Node, twin: ir.Node) -> str:
        for name in twin.attributes.keys() | node.attributes.keys():
            right, mine = twin.attributes.get(name), node.attributes.get(name)
            if right is None or mine is None or _attribute(right) != _attribute(mine):
                return f"{_called(twin)} has {name} {_value(mine)} instead of {_value(right)}"
        for right_value, value in zip(twin.inputs, node.inputs, strict=False):
            if self._mine.get(value) != self._right.get(right_value):
                return f"{_called(twin)} takes {_shown(value)} instead of {_shown(right_value)}"
        return f"{_called(twin)} is another node: {node.domain}.{node.op_type} of {len(node.inputs)} inputs"

    def _leaves(self, model: ir.Model) -> dict[ir.Value | None, int]:
        leaves: dict[ir.Value | None, int] = {None: self._number("nothing")}
        for value in model.graph.inputs:
            leaves[value] = self._number(("input", value.name))
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            outside = isinstance(tensor, ir.ExternalTensor)
            leaves[value] = self._number(("weight", name) if outside else ("constant", *_tensor(tensor)))
        return leaves

    def _term(self, node: ir.Node, numbers: dict[ir.Value | None, int]) -> Hashable:
        taken = tuple(numbers.get(value, -1) for value in node.inputs)
        attributes = tuple(sorted((name, _attribute(one)) for name, one in node.attributes.items()))
        return node.domain, node.op_type, node.overload, attributes, taken, len(node.outputs)

    def _number(self, term: Hashable) -> int:
        return self._numbers.setdefault(term, len(self._numbers))


def _attribute(attribute: ir.Attr) -> tuple[str, str]:
    """Type and value, to compare; a nested graph and a reference are like nothing."""
    if attribute.is_ref() or attribute.type in _GRAPHS:
        return "nested", str(id(attribute))
    if attribute.type in _TENSORS:
        tensors = attribute.value if attribute.type is ir.AttributeType.TENSORS else [attribute.value]
        return str(attribute.type), repr([_tensor(tensor) for tensor in tensors])
    return str(attribute.type), repr(attribute.value)


def _tensor(tensor: ir.TensorProtocol | None) -> tuple[str, ...]:
    if tensor is None or isinstance(tensor, ir.ExternalTensor):  # not read: it may lie anywhere
        return "elsewhere", str(id(tensor))
    return str(tensor.dtype), repr(tensor.shape.numpy()), tensor.tobytes().hex()


def _value(attribute: ir.Attr | None) -> str:
    if attribute is None:
        return "left out"
    if attribute.is_ref() or attribute.type in (*_GRAPHS, *_TENSORS):
        return f"of type {attribute.type}"
    return f"{attribute.value:.9g}" if isinstance(attribute.value, float) else repr(attribute.value)


def _shown(value: ir.Value | None) -> str:
    """A value for a sentence."""
    if value is None:
        return "nothing"
    tensor, producer = value.const_value, value.producer()
    if value.is_initializer() and tensor is not None and not isinstance(tensor, ir.ExternalTensor):
        return f"the constant {tensor.numpy().tolist()}" if tensor.size <= 8 else f"a constant {tensor.shape}"
    return repr(value.name) if producer is None else f"what {_called(producer)} makes"


def _called(node: ir.Node) -> str:
    """Operator, and the module of the model it was traced from, or else its name."""
    try:
        scopes: Sequence[str] = literal_eval(node.metadata_props.get(SCOPES, "[]"))
        part = scopes[-2] if len(scopes) > 1 else ""
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        part = ""
    return f"{node.op_type} {node.name!r}" + (f" of {part}" if part else "")
