"""What is known to go wrong between a graph and its engine, looked for before the build.

Each of these was measured once (docs/architecture.md): the engine builds, and is slow, wrong, or not for that GPU.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError

from bundle.config import Limits, ModelConfig
from bundle.errors import UnsupportedError
from bundle.signature import Component, Precision, Signature, Tensor, signature

_DTYPES = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
}  # fmt: skip
_INT4 = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
_INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_FP8 = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)
_AGAIN = "export the checkpoint again"


@dataclass(frozen=True)
class Finding:
    """One thing found in a graph."""

    rule: str
    severity: Literal["error", "warning"]
    sentence: str  # where it is, what it does, what to do


@dataclass(frozen=True)
class Graph:
    """A graph as the rules see it."""

    proto: onnx.GraphProto
    opsets: tuple[str, ...]  # domains
    contract: Signature
    limits: Limits
    capability: int  # of the target: 89 for sm89
    producers: dict[str, onnx.NodeProto]  # tensor → the node that makes it
    uses: Counter[str]  # tensor → how many nodes read it
    initializers: dict[str, onnx.TensorProto]


def lint_graph(
    graph: Path, component: Component, precision: Precision, model: ModelConfig, limits: Limits, target: str
) -> tuple[Finding, ...]:
    """Every known trap in a graph, the errors first.

    Args:
        graph: the ONNX file; its weights are not read.
        component: which graph it is meant to be; with precision, model and limits the contract it is held to.
        precision: of its weights.
        model: sizes of the model.
        limits: of the bundle.
        target: compute capability that it is to be built for, such as "sm89".
    Raises:
        UnsupportedError: it is no ONNX file.
    """
    try:
        proto = onnx.load(graph, load_external_data=False)
    except DecodeError as error:
        raise UnsupportedError(f"{graph} does not parse: it is no ONNX file ({error}); {_AGAIN}") from None
    seen = Graph(
        proto=proto.graph,
        opsets=tuple(opset.domain for opset in proto.opset_import),
        contract=signature(component, model, limits, precision),
        limits=limits,
        capability=int(target.removeprefix("sm")),
        producers={name: node for node in proto.graph.node for name in node.output},
        uses=Counter(name for node in proto.graph.node for name in node.input),
        initializers={tensor.name: tensor for tensor in proto.graph.initializer},
    )
    found = [finding for rule in RULES for finding in rule(seen)]
    return tuple(sorted(found, key=lambda finding: finding.severity))


def contract(graph: Graph) -> Iterator[Finding]:
    """Names, dtypes and axes are those the runtime binds and the profiles are made for."""
    for what, values, wanted in (
        ("input", graph.proto.input, graph.contract.inputs),
        ("output", graph.proto.output, graph.contract.outputs),
    ):
        have = {value.name: _tensor(value) for value in values}
        for tensor in wanted:
            if tensor.name not in have:
                yield _error("contract", f"the {what} {tensor.name} is missing; {_AGAIN}")
            elif have[tensor.name] != tensor:
                yield _error(
                    "contract",
                    f"the {what} {tensor.name} is {_described(have[tensor.name])} and the contract says "
                    f"{_described(tensor)}; {_AGAIN}",
                )
        for name in have.keys() - {tensor.name for tensor in wanted}:
            yield _error("contract", f"the {what} {name} is not in the contract, so nothing would bind it; {_AGAIN}")


def unused_inputs(graph: Graph) -> Iterator[Finding]:
    for value in graph.proto.input:
        if not graph.uses[value.name]:
            yield _error(
                "unused-input",
                f"no node reads the input {value.name}: TensorRT drops it with a warning, and what it should do is "
                f"not done; {_AGAIN}",
            )


def cache_in_place(graph: Graph) -> Iterator[Finding]:
    """`present` is written by TensorScatter straight from the input: anything between is a pass over the cache."""
    inputs = {value.name for value in graph.proto.input}
    for value in graph.proto.output:
        if not value.name.startswith("present."):
            continue
        node = graph.producers.get(value.name)
        past = value.name.replace("present.", "past_key_values.", 1)
        if node is None or node.op_type != "TensorScatter" or node.input[0] != past or past not in inputs:
            made = "nothing" if node is None else f"{node.op_type} of {node.input[0]}"
            yield _error(
                "cache-not-in-place",
                f"{value.name} is {made}; only TensorScatter of the graph's input {past} is updated in place, anything "
                f"else copies the cache at every step; {_AGAIN}",
            )


def attention(graph: Graph) -> Iterator[Finding]:
    for node in _nodes(graph, "Attention"):
        scale = next((attribute.f for attribute in node.attribute if attribute.name == "scale"), None)
        if scale is None or scale == 1.0:
            yield _error(
                "attention-scale",
                f"the attention {node.name} has {'no scale' if scale is None else 'scale 1.0'}: with a query that was "
                "scaled before, TensorRT copies the whole key cache at every step; give the scale as its attribute",
            )
        names = ("past_key", "past_value", "nonpad_kv_seqlen")
        given = [name for name, value in zip(names, node.input[4:], strict=False) if value]
        if "nonpad_kv_seqlen" in given:
            yield _error(
                "attention-length",
                f"the attention {node.name} has nonpad_kv_seqlen, which TensorRT's parser drops: the engine would "
                "attend to positions that hold nothing; mask them instead",
            )
        if "past_key" in given or "past_value" in given:
            yield _error(
                "attention-past",
                f"the attention {node.name} has past keys and values as inputs, which TensorRT does not parse; write "
                "them with TensorScatter and attend to the cache",
            )


def operators(graph: Graph) -> Iterator[Finding]:
    for node in graph.proto.node:
        if node.domain not in ("", "ai.onnx"):
            yield _error(
                "operator-domain",
                f"{node.op_type} {node.name} is of the domain {node.domain}, which TensorRT does not parse; use "
                "operators of ai.onnx",
            )
        if node.op_type == "Transpose" and node.input[0] in graph.initializers:
            yield Finding(
                "transposed-weight",
                "warning",
                f"the weight {node.input[0]} is transposed in the graph, maybe at every run; lay it out at export",
            )


def quantization(graph: Graph) -> Iterator[Finding]:
    for node in _nodes(graph, "DequantizeLinear"):
        weight = graph.initializers.get(node.input[0])
        block = next((attribute.i for attribute in node.attribute if attribute.name == "block_size"), 0)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if weight is None:
            continue
        if weight.data_type in _INT8 and block:
            yield _error(
                "int8-blocks",
                f"the INT8 weight {weight.name} is scaled in blocks of {block}, which TensorRT does not fuse with its "
                "product; scale it per channel",
            )
        if weight.data_type in _INT4 and block and weight.dims[axis] % block:
            yield _error(
                "int4-blocks",
                f"the INT4 weight {weight.name} has {weight.dims[axis]} rows, which blocks of {block} do not divide; "
                "choose a block size that does",
            )


def capability(graph: Graph) -> Iterator[Finding]:
    """Types that the target has no kernels for."""
    kinds = {tensor.data_type for tensor in graph.initializers.values()}
    for types, least, name in (
        (_INT4, 80, "INT4"),
        (_FP8, 89, "FP8"),
        ((onnx.TensorProto.BFLOAT16,), 80, "bf16"),
    ):
        if kinds & set(types) and graph.capability < least:
            yield _error(
                "capability",
                f"it has {name} weights, which need sm{least} or newer; build for such a GPU, or export in fp16",
            )
    if graph.capability < 80:
        wide = [n for n in _nodes(graph, "MatMul", "Gemm") if _is_wide(graph, n)]
        if wide:
            yield Finding(
                "fp32-product",
                "warning",
                f"{len(wide)} products of fp32 weights ({wide[0].name}, …): sm75 has no TF32 and computes them without "
                "tensor cores, many times slower; use fp16",
            )


def _is_wide(graph: Graph, node: onnx.NodeProto) -> bool:
    weight = graph.initializers.get(node.input[1])
    return weight is not None and weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 2


RULES: tuple[Callable[[Graph], Iterator[Finding]], ...] = (
    contract, unused_inputs, cache_in_place, attention, operators, quantization, capability,
)  # fmt: skip


def _nodes(graph: Graph, *kinds: str) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.proto.node if node.op_type in kinds)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in kind.shape.dim)
    return Tensor(value.name, _DTYPES.get(kind.elem_type, str(kind.elem_type)), axes)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} [{', '.join(str(axis) for axis in tensor.axes)}]"


def _error(rule: str, sentence: str) -> Finding:
    return Finding(rule, "error", sentence)
