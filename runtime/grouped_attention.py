"""The decoder's attention in the form that ONNX Runtime computes quickest on a CPU, made in memory when it is loaded.

The graphs of a bundle write the cache (TensorScatter), cut the part out that is looked at (Slice, a copy) and attend to
it (Attention): standard operators, as TensorRT parses them. ONNX Runtime's own GroupQueryAttention writes and reads the
cache where it lies, each sequence as far as it is filled. Inputs, outputs, weights and masks stay as they are, and so
do the numbers, but for the rounding of shorter sums (`tests/runtime/test_grouped_attention.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlm_trt.bundle.signature import CAUSAL

_DOMAIN = "com.microsoft"


def group_attention(model: ir.Model) -> int:
    """How many layers were put into that form; changes the graph of a decoder.

    Others stay as they are: those in half precision, whose kernels round differently, and scores that are capped by
    products written out. Where no position is shown a later one, the kernel is told so besides the mask: it then takes
    keys and values in fp32 block by block in one pass, a step in half the time. Of integers it does so slower.
    """
    causal = CAUSAL in model.metadata_props
    found = [layer for node in model.graph if (layer := _matched(node)) is not None]
    if found:
        model.graph.opset_imports[_DOMAIN] = 1
        shared = _Shared(model)
        for layer in found:
            _replace(model.graph, layer, shared, causal)
        for name in [name for name, value in model.graph.initializers.items() if not value.uses()]:
            del model.graph.initializers[name]
    return len(found)


@dataclass(frozen=True)
class _Layer:
    """The nodes of one layer's attention."""

    attention: ir.Node
    key: "_Cache"
    value: "_Cache"
    merge: ir.Node  # Reshape of the transposed context: [batch, seq, heads · head_dim]


@dataclass(frozen=True)
class _Cache:
    """Keys, or values, of one layer."""

    write: ir.Node  # TensorScatter: past, new, write_index → present
    new: ir.Value  # in fp32
    scale: ir.Value | None  # of integers [1, kv_heads, 1, head_dim]; None: in fp32


def _matched(node: ir.Node) -> _Layer | None:
    """What belongs to an Attention over a cache in fp32, or in 8 bits."""
    if node.op_type != "Attention" or len(node.inputs) != 4:
        return None
    transposed = _only_user(node.outputs[0], "Transpose")
    merge = None if transposed is None else _only_user(transposed.outputs[0], "Reshape")
    key, value = (_cache(one) for one in node.inputs[1:3])
    if key is None or value is None or merge is None:
        return None
    past = _given(key.write, 0)
    stored = ir.DataType.FLOAT if key.scale is None else ir.DataType.INT8
    if past.dtype is not stored or not _divisible(past):
        return None
    return _Layer(node, key, value, merge)


def _cache(seen: ir.Value | None) -> _Cache | None:
    """Where what attention sees is cached: as it is, or as integers (`calibration/cache.py`)."""
    restored = _maker(seen, "Mul")
    loaded = seen if restored is None else _input(_maker(restored.inputs[0], "Cast"), 0)
    write = _maker(_input(_maker(loaded, "Slice"), 0), "TensorScatter")
    new = _input(write, 1)
    if write is None or new is None:
        return None
    if restored is None:
        return _Cache(write, new, None)
    for op in ("Cast", "Clip", "Round", "Div"):
        new = _input(_maker(new, op), 0)
    return None if new is None else _Cache(write, new, restored.inputs[1])


def _divisible(past: ir.Value) -> bool:
    """Whether the kernel takes heads of that size."""
    size = None if past.shape is None else past.shape[3]
    return isinstance(size, int) and size % 8 == 0


class _Shared:
    """What all layers are given, made once, before all other nodes."""

    def __init__(self, model: ir.Model) -> None:
        self._graph, self._first = model.graph, next(iter(model.graph))
        self._inputs = {value.name: value for value in model.graph.inputs}
        self._biases: dict[ir.Value, ir.Value] = {}
        self._scales: dict[ir.Value, ir.Value] = {}
        ids, written, window = (self._inputs[name] for name in ("input_ids", "write_index", "kv_positions"))
        seq = self._made("Shape", [ids], ir.DataType.INT64, {"start": 1, "end": 2})
        behind = self._made("Add", [written, seq], ir.DataType.INT64)
        # [batch]: the last position of each sequence; and how many positions are looked at.
        self.last = self._int32(self._made("Sub", [behind, self._constant("one", np.array([1]))], ir.DataType.INT64))
        size = self._made("Shape", [window], ir.DataType.INT64, {"start": 0, "end": 1})
        axis = self._constant("axis_0", np.array([0]))
        self.total = self._int32(self._made("Squeeze", [size, axis], ir.DataType.INT64))
        self._axis_2 = self._constant("axis_2", np.array([2]))

    def bias(self, mask: ir.Value) -> ir.Value:
        """0 where the mask allows it, else −∞ [batch, 1, seq, window]."""
        if mask not in self._biases:
            seen, hidden = (self._constant(name, np.float32(one)) for name, one in (("seen", 0), ("hidden", -np.inf)))
            node = ir.node("Where", [mask, seen, hidden], name="grouped_bias")
            maker, bias = mask.producer(), node.outputs[0]
            assert maker is not None
            self._graph.insert_after(maker, node)
            bias.type, bias.shape = ir.TensorType(ir.DataType.FLOAT), mask.shape
            self._biases[mask] = bias
        return self._biases[mask]

    def scale(self, scale: ir.Value) -> ir.Value:
        """Factors [batch, 1, seq, 1] of the input [batch, seq] that they come from, as [batch, seq, 1]."""
        source: ir.Value | None = scale
        while source is not None and source.name not in self._inputs:
            source = _input(source.producer(), 0)
        assert source is not None
        if source not in self._scales:
            self._scales[source] = self._made("Unsqueeze", [source, self._axis_2], ir.DataType.FLOAT)
        return self._scales[source]

    def _made(
        self, op: str, inputs: Sequence[ir.Value], dtype: ir.DataType, attributes: dict[str, int] | None = None
    ) -> ir.Value:
        """What that node makes. Its type is noted, since graphs are run in parts too."""
        node = ir.node(op, inputs, attributes or {}, name=f"grouped_{op}_{len(self._graph)}")
        self._graph.insert_before(self._first, node)
        node.outputs[0].type = ir.TensorType(dtype)
        return node.outputs[0]

    def _int32(self, value: ir.Value) -> ir.Value:
        return self._made("Cast", [value], ir.DataType.INT32, {"to": ir.DataType.INT32})

    def _constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        """A number as an initializer."""
        name = f"grouped.{name}"
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(array)), const_value=tensor
        )
        self._graph.register_initializer(value)
        return value


def _replace(graph: ir.Graph, layer: _Layer, shared: _Shared, causal: bool) -> None:
    query, mask = layer.attention.inputs[0], layer.attention.inputs[3]
    past_key, past_value = _given(layer.key.write, 0), _given(layer.value.write, 0)
    assert query is not None and mask is not None
    flat = [_unsplit(graph, one, shared) for one in (query, layer.key.new, layer.value.new)]
    inputs = [*flat, past_key, past_value, shared.last, shared.total, None, None, None, shared.bias(mask)]
    heads, kv_heads = _heads(query), _heads(past_key)
    attributes: dict[str, int | float | str] = {
        "num_heads": heads, "kv_num_heads": kv_heads, "do_rotary": 0,
        "causal": int(causal and layer.key.scale is None),
    }  # fmt: skip
    if layer.key.scale is not None:
        inputs += [None, layer.key.scale, layer.value.scale]
        attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
    attributes["scale"] = layer.attention.attributes["scale"].as_float()
    node = ir.node("GroupQueryAttention", inputs, attributes, domain=_DOMAIN, num_outputs=3, name=layer.attention.name)
    graph.insert_after(layer.merge, node)
    old = [layer.merge.outputs[0], layer.key.write.outputs[0], layer.value.write.outputs[0]]
    for before, now in zip(old, node.outputs, strict=True):
        name, now.type, now.shape = before.name, before.type, before.shape
        if before.is_graph_output():
            graph.outputs[graph.outputs.index(before)] = now
        before.name = f"{name}.apart"
        now.name = name
    old[0].replace_all_uses_with(node.outputs[0])
    _remove_unused(graph, layer)


def _unsplit(graph: ir.Graph, value: ir.Value | None, shared: _Shared) -> ir.Value:
    """The value [batch, heads, seq, head_dim] before its heads were split: [batch, seq, heads · head_dim]."""
    assert value is not None
    node = value.producer()
    assert node is not None
    match node.op_type:
        case "Transpose":
            split = _maker(node.inputs[0], "Reshape")
            whole = _input(split, 0)
            assert whole is not None
            return whole
        case "Mul":  # log-n attention
            inputs = [_unsplit(graph, node.inputs[0], shared), shared.scale(_given(node, 1))]
            return _inserted(graph, node, inputs, {})
        case "RotaryEmbedding":
            inputs = [_unsplit(graph, node.inputs[0], shared), _given(node, 1), _given(node, 2)]
            return _inserted(
                graph, node, inputs, {**node.attributes, "num_heads": ir.AttrInt64("num_heads", _heads(value))}
            )
    raise AssertionError(f"{node.op_type} between split heads and attention")


def _inserted(graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value], attributes: dict[str, ir.Attr]) -> ir.Value:
    """What the node makes of values whose heads are together."""
    made = ir.Node("", node.op_type, inputs, list(attributes.values()), name=f"{node.name}_together")
    graph.insert_after(node, made)
    made.outputs[0].type = node.outputs[0].type
    return made.outputs[0]


def _remove_unused(graph: ir.Graph, layer: _Layer) -> None:
    """The nodes that nothing needs any more, from attention back to where heads were split."""
    left = [layer.merge, layer.attention, layer.key.write, layer.value.write]
    while left:
        node = left.pop()
        if node.graph is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        left += [maker for value in node.inputs if value is not None and (maker := value.producer()) is not None]
        graph.remove(node, safe=True)


def _heads(value: ir.Value) -> int:
    """Of a value [batch, heads, …]."""
    heads = None if value.shape is None else value.shape[1]
    assert isinstance(heads, int)
    return heads


def _maker(value: ir.Value | None, op: str) -> ir.Node | None:
    """The node that makes a value, if it is of that kind."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op else None


def _input(node: ir.Node | None, at: int) -> ir.Value | None:
    return None if node is None else node.inputs[at]


def _given(node: ir.Node, at: int) -> ir.Value:
    value = node.inputs[at]
    assert value is not None
    return value


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    """The node that takes a value, if it is the only one and of that kind."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and uses[0].node.op_type == op else None
