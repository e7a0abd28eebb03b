"""The traps: each rule looks for one kind of them in a graph, and explains what it would do and what to do about it.

Each was measured once (docs/architecture.md): the engine is slow, wrong, not for that GPU, or refused after minutes in
words that name no cause.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx

from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.signature import Signature, Tensor
from vlm_trt.engines.finding import Finding

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.INT64: "int64",
}  # fmt: skip
_INT4 = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
_INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_WIDE = (onnx.TensorProto.FLOAT,)
_FP8 = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)
_AGAIN = "export the checkpoint again"
_CACHES = ("past_key_values.", "present.")
_INSTEAD = {
    "GroupQueryAttention": "write the cache with TensorScatter and use Attention of ai.onnx",
    "MatMulNBits": "use DequantizeLinear and MatMul of ai.onnx, which both backends fuse",
}


@dataclass(frozen=True)
class Graph:
    """A graph as the rules see it."""

    proto: onnx.GraphProto
    contract: Signature
    limits: Limits
    capability: int  # of the target: 89 for sm89
    backend: str
    producers: dict[str, onnx.NodeProto]  # tensor → the node that makes it
    uses: Counter[str]  # tensor → how many nodes read it
    initializers: dict[str, onnx.TensorProto]


def contract(graph: Graph) -> Iterator[Finding]:
    """Names, dtypes and axes are those the runtime binds and the profiles are made for."""
    for what, values, wanted in (
        ("input", graph.proto.input, graph.contract.inputs),
        ("output", graph.proto.output, graph.contract.outputs),
    ):
        have = {value.name: _tensor(value) for value in values}
        for tensor in wanted:
            name = tensor.name
            if name not in have:
                yield _error("contract", name, f"the {what} {name} is missing; {_AGAIN}")
            elif name.startswith(_CACHES) and have[name].axes[2:3] != tensor.axes[2:3]:
                yield _cache_length(what, have[name], tensor)
            elif have[name] != tensor:
                yield _error(
                    "contract",
                    name,
                    f"the {what} {name} is {_described(have[name])} and the contract says {_described(tensor)}; "
                    f"{_AGAIN}",
                )
        for name in have.keys() - {tensor.name for tensor in wanted}:
            yield _error("contract", name, f"the {what} {name} is not in the contract, so nothing binds it; {_AGAIN}")


def _cache_length(what: str, have: Tensor, wanted: Tensor) -> Finding:
    length = have.axes[2] if len(have.axes) > 2 else None
    if isinstance(length, int):
        why = "the bundle's limits and the engine would disagree about where the cache ends"
    else:
        why = "attention reads the cache in place only if its length is a number in the graph"
    return _error(
        "cache-length",
        have.name,
        f"the {what} {have.name} is {_described(have)}, and a cache is {_described(wanted)}: {why}; {_AGAIN}",
    )


def unused_inputs(graph: Graph) -> Iterator[Finding]:
    for value in graph.proto.input:
        if not graph.uses[value.name]:
            yield _error(
                "unused-input",
                value.name,
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
                value.name,
                f"{value.name} is {made}; only TensorScatter of the graph's input {past} is updated in place, anything "
                f"else copies the cache at every step; {_AGAIN}",
            )


def head_size(graph: Graph) -> Iterator[Finding]:
    """Kernels that read the cache in place take heads of whole eights: 16 and 24 build, 10 and 12 do not."""
    caches = [tensor for tensor in graph.contract.inputs if tensor.name.startswith(_CACHES)]
    size = caches[0].axes[-1] if caches else 0
    if isinstance(size, int) and size % 8:
        yield _error(
            "head-size",
            caches[0].name,
            f"the decoder's heads have {size} numbers, and TensorRT reads a cache in place only where they have a "
            "multiple of 8: each step would copy the cache, or the build fail; run this model on ONNX Runtime",
        )


def attention(graph: Graph) -> Iterator[Finding]:
    for node in _nodes(graph, "Attention"):
        yield from _scale(node)
        names = ("past_key", "past_value", "nonpad_kv_seqlen")
        given = [name for name, value in zip(names, node.input[4:], strict=False) if value]
        if "nonpad_kv_seqlen" in given:
            yield _error(
                "attention-length",
                node.name,
                f"the attention {node.name} has nonpad_kv_seqlen, which TensorRT's parser drops: the engine would "
                "attend to positions that hold nothing; mask them instead",
            )
        if "past_key" in given or "past_value" in given:
            yield _error(
                "attention-past",
                node.name,
                f"the attention {node.name} has past keys and values as inputs, which TensorRT does not parse; write "
                "them with TensorScatter and attend to the cache",
            )


def _scale(node: onnx.NodeProto) -> Iterator[Finding]:
    """A scale of 1 makes TensorRT-RTX 1.7 copy the key cache, whether or not the query was scaled before; seen in the
    kernel program. A missing scale does not: it is worked out from the shapes, in a few more layers."""
    scale = next((attribute.f for attribute in node.attribute if attribute.name == "scale"), None)
    if scale is None:
        yield Finding(
            "attention-no-scale",
            "warning",
            node.name,
            f"the attention {node.name} has no scale, so TensorRT works it out from shapes at run time, and a head "
            "size that was padded would change it; give head_dim^-0.5 as its attribute scale",
        )
    elif scale == 1.0:
        yield _error(
            "attention-scale",
            node.name,
            f"the attention {node.name} has scale 1.0: TensorRT then copies the whole key cache at every step; do not "
            "scale the query before it, give head_dim^-0.5 as its attribute scale",
        )


def operators(graph: Graph) -> Iterator[Finding]:
    for node in graph.proto.node:
        if node.domain not in ("", "ai.onnx"):
            instead = _INSTEAD.get(node.op_type, "use operators of ai.onnx")
            yield _error(
                "operator-domain",
                node.name,
                f"{node.op_type} {node.name} is of the domain {node.domain}, which TensorRT does not parse; {instead}",
            )
        if node.op_type == "Transpose" and node.input[0] in graph.initializers:
            yield Finding(
                "transposed-weight",
                "warning",
                node.input[0],
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
                weight.name,
                f"the INT8 weight {weight.name} is scaled in blocks of {block}, which TensorRT does not fuse with its "
                "product; scale it per channel",
            )
        if weight.data_type in _INT4 and block and weight.dims[axis] % block:
            yield _error(
                "int4-blocks",
                weight.name,
                f"the INT4 weight {weight.name} has {weight.dims[axis]} rows, which blocks of {block} do not divide; "
                "choose a block size that does",
            )


def capability(graph: Graph) -> Iterator[Finding]:
    """Types that the target has no kernels for."""
    kinds = {tensor.data_type: tensor.name for tensor in graph.initializers.values()}
    casts = _nodes(graph, "Cast")
    kinds |= {attribute.i: node.name for node in casts for attribute in node.attribute if attribute.name == "to"}
    for types, least, name in (
        (_INT4, 80, "INT4"),
        (_FP8, 89, "FP8"),
        ((onnx.TensorProto.BFLOAT16,), 80, "bf16"),
    ):
        where = next((kinds[kind] for kind in types if kind in kinds), None)
        if where is not None and graph.capability < least:
            yield _error(
                "capability",
                where,
                f"it has {name} tensors ({where}, …), which need sm{least} or newer; build for such a GPU, or export "
                "in fp16",
            )


def fp32_products(graph: Graph) -> Iterator[Finding]:
    """TensorRT-RTX 1.7 for sm75: "Cannot compile operation … for Turing (SM75): FP32 GEMM is not supported"."""
    wide = [node for node in _nodes(graph, "MatMul", "Gemm") if _weight_type(graph, node.input[1]) in _WIDE]
    if graph.capability >= 80 or not wide:
        return
    count = f"{len(wide)} products of fp32 weights ({wide[0].name}, …)"
    if graph.backend == "tensorrt-rtx":
        sentence = f"{count}: TensorRT-RTX has no fp32 products for sm75; export in fp16, or build for sm80 or newer"
        yield _error("fp32-product", wide[0].name, sentence)
    else:
        sentence = f"{count}: sm75 computes them without tensor cores, many times slower; export in fp16"
        yield Finding("fp32-product", "warning", wide[0].name, sentence)


def _weight_type(graph: Graph, name: str) -> int | None:
    """The type in which a weight enters its product, through casts, layouts and dequantization; None: no weight."""
    if name in graph.initializers:
        return int(graph.initializers[name].data_type)
    node = graph.producers.get(name)
    if node is None or node.op_type not in ("Cast", "Transpose", "Reshape", "Identity", "DequantizeLinear"):
        return None
    inner = _weight_type(graph, node.input[1 if node.op_type == "DequantizeLinear" else 0])  # of the scale
    if inner is not None and node.op_type == "Cast":
        return next(int(attribute.i) for attribute in node.attribute if attribute.name == "to")
    return inner


RULES: tuple[Callable[[Graph], Iterator[Finding]], ...] = (
    contract, unused_inputs, cache_in_place, head_size, attention, operators, quantization, capability,
    fp32_products,
)  # fmt: skip


def _nodes(graph: Graph, *kinds: str) -> Iterator[onnx.NodeProto]:
    return (node for node in graph.proto.node if node.op_type in kinds)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    kind = value.type.tensor_type
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in kind.shape.dim)
    return Tensor(value.name, _DTYPES.get(kind.elem_type, str(kind.elem_type)), axes)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} [{', '.join(str(axis) for axis in tensor.axes)}]"


def _error(rule: str, where: str, sentence: str) -> Finding:
    return Finding(rule, "error", where, sentence)
