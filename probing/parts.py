"""A graph cut into parts that follow one another, so that a model of any size is run in the memory of its largest part.

Any cut of a graph in the order of its nodes computes the same: what one part makes and a later one needs is handed on.
Cuts are made where least is handed on, which is between layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import onnx_ir as ir

from vlm_trt.bundle.errors import BundleError
from vlm_trt.probing.part_size import PART_BYTES

# A graph as its file holds it, of the `onnx` package, which `onnx_ir` brings.
Proto = Any
# A graph's output that a later node uses is counted as many values: a cache is written in place and not handed on.
_OUTPUT_WEIGHT = 1000


@dataclass(frozen=True)
class Part:
    """Some consecutive nodes of a graph as a graph of its own."""

    model: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weight_values: int


def cut(model: ir.Model, part_bytes: int = PART_BYTES) -> list[Part]:
    """The graph in parts whose weights, in fp32, stay below `part_bytes` where a single node allows it.

    Raises:
        BundleError: a node holds graphs of its own, or uses what is made after it.
    """
    proto = ir.to_proto(model)
    for node in proto.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BundleError(f"the node {node.name} holds a graph of its own, which none of ours does; export again")
    values = {tensor.name: prod(tensor.dims) for tensor in proto.graph.initializer}
    ends = {info.name for info in proto.graph.output}
    # A weight in another type is made again in every part that uses it: handed on, it would be kept for every run.
    casts = {node.output[0]: node for node in proto.graph.node if node.op_type == "Cast" and node.input[0] in values}
    nodes = [node for node in proto.graph.node if node.output[0] not in casts]
    needs = [tuple(dict.fromkeys(name for name in node.input if name)) for node in nodes]
    makes = [tuple(node.output) for node in nodes]
    weighed = [tuple(casts[name].input[0] if name in casts else name for name in names) for names in needs]
    bounds = _bounds(weighed, _handed_on(weighed, makes, values, ends), values, part_bytes // 4)
    return list(_parts(proto, nodes, bounds, casts))


def _bounds(needs: Sequence[tuple[str, ...]], handed: Sequence[int], values: dict[str, int], most: int) -> list[int]:
    """First node of each part, and after the last one."""
    bounds, size, seen = [0], 0, set[str]()
    for at, names in enumerate(needs):
        new = [name for name in names if name in values and name not in seen]
        more = sum(values[name] for name in new)
        if size and more and size + more > most:
            # The latest of the places with the least to hand on, behind the last cut.
            best = min(range(at, bounds[-1], -1), key=lambda place: handed[place])
            bounds.append(best)
            seen = {name for node in range(best, at) for name in needs[node] if name in values}
            size = sum(values[name] for name in seen)
        seen.update(new)
        size += more
    return [*bounds, len(needs)]


def _handed_on(
    needs: Sequence[tuple[str, ...]], makes: Sequence[tuple[str, ...]], values: dict[str, int], ends: set[str]
) -> list[int]:
    """How many values cross each place between nodes: made before the node of that number, used by it or later."""
    last_use = {name: at for at, names in enumerate(needs) for name in names if name not in values}
    change = [0] * (len(needs) + 1)
    for at, names in enumerate(makes):
        for name in names:
            if last_use.get(name, -1) > at:
                weight = _OUTPUT_WEIGHT if name in ends else 1
                change[at + 1] += weight
                change[last_use[name] + 1] -= weight
    crossing, count = [], 0
    for step in change:
        count += step
        crossing.append(count)
    return crossing


def _parts(proto: Proto, nodes: Sequence[Proto], bounds: Sequence[int], casts: dict[str, Proto]) -> Iterator[Part]:
    graph = proto.graph
    typed = {info.name: info for info in (*graph.value_info, *graph.input, *graph.output)}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    ends = {info.name for info in graph.output}
    given = {info.name for info in graph.input}
    for start, stop in pairwise(bounds):
        own_nodes = _with_casts(nodes[start:stop], casts)
        made = {name for node in own_nodes for name in node.output if name}
        used = dict.fromkeys(name for node in own_nodes for name in node.input if name)
        inputs = [name for name in used if name not in made and name not in initializers]
        later = {name for node in nodes[stop:] for name in node.input}
        outputs = [name for node in nodes[start:stop] for name in node.output if name in later or name in ends]
        missing = [name for name in inputs if name not in given and name not in typed]
        if missing or (start == 0 and set(inputs) - given):
            raise BundleError(f"{(missing or inputs)[0]} is used before it is made; export the checkpoint again")
        own = [initializers[name] for name in used if name in initializers]
        part = type(proto)(ir_version=proto.ir_version, opset_import=proto.opset_import)
        part.graph.name = f"nodes {start} to {stop - 1}"
        part.graph.node.extend(own_nodes)
        part.graph.initializer.extend(own)
        part.graph.input.extend(_typed(typed, name) for name in inputs)
        part.graph.output.extend(_typed(typed, name) for name in outputs)
        size = sum(prod(tensor.dims) for tensor in own)
        yield Part(part.SerializeToString(), tuple(inputs), tuple(outputs), size)


def _with_casts(nodes: Sequence[Proto], casts: dict[str, Proto]) -> list[Proto]:
    """The nodes, after the casts of weights that they use."""
    used = dict.fromkeys(name for node in nodes for name in node.input)
    return [*(casts[name] for name in used if name in casts), *nodes]


def _typed(typed: dict[str, Proto], name: str) -> Proto:
    if name not in typed:
        raise BundleError(f"{name} has no type in the graph; export the checkpoint again")
    return typed[name]
