"""Which nodes of a half-precision graph have to compute in fp32, from what was seen of its values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.diagnosis.compare import Deviation
from vlm_trt.probing.widen import LEFT, widen
from vlm_trt.verification.figures import Tolerance

# The largest number of fp16, and the share of it that may be reached: other inputs make larger values.
FP16_MAX = float(np.finfo(np.float16).max)
_FP16_ROOM = FP16_MAX / 2


@dataclass(frozen=True)
class Island:
    """Nodes of one graph that compute in fp32."""

    component: Component
    nodes: tuple[str, ...]
    unrounded: tuple[str, ...] = ()  # values that pass between them as they are, since half precision cannot hold them

    def joined(self, other: "Island") -> "Island":
        nodes = tuple(dict.fromkeys((*self.nodes, *other.nodes)))
        return Island(self.component, nodes, tuple(dict.fromkeys((*self.unrounded, *other.unrounded))))

    def apply(self, model: ir.Model) -> None:
        """Changes the graph as it was exported."""
        widen(model, self.nodes, self.unrounded)


def as_json(islands: Mapping[Component, Island]) -> dict[str, Any]:
    """The islands as JSON values."""
    return {component.value: asdict(island) for component, island in islands.items()}


def culprits(deviations: Sequence[Deviation], tolerance: Tolerance) -> list[Deviation]:
    """The values that are off although nothing they are made from is, however far back: where errors begin."""
    tainted: list[bool] = []
    found = []
    for one in deviations:
        behind, off = any(tainted[source] for source in one.pair.sources), not one.within(tolerance)
        tainted.append(behind or off)
        if off and not behind:
            found.append(one)
    return found


def beyond_fp16(deviations: Sequence[Deviation]) -> list[Deviation]:
    """The values stored in fp16 that come close to its limit, or lie beyond."""
    return [one for one in deviations if one.pair.half and one.magnitude > _FP16_ROOM]


def proposed(
    model: ir.Model, deviations: Sequence[Deviation], tolerance: Tolerance, known: Island, *, fp16: bool
) -> Island:
    """The nodes to compute in fp32: those where errors begin, and those between which values are too large for fp16.

    Args:
        model: the graph as it was exported.
        deviations: of its values, with the known island.
        tolerance: what a value may be off.
        known: nodes that compute in fp32 already; where one of them is still to blame, what it takes was rounded.
        fp16: whether its type is fp16; bf16 holds whatever fp32 holds.
    Raises:
        VerificationError: a value that has to stay in fp32 leaves the graph, or goes into the cache.
    """
    large = beyond_fp16(deviations) if fp16 else []
    begin = culprits(deviations, tolerance)
    still = [one for one in begin if one.pair.node in known.nodes]
    coarse = [source for one in still for source in _rounded_behind(one, deviations, known)]
    values = {value.name: value for node in model.graph for value in node.outputs}
    unrounded = tuple(dict.fromkeys(one.pair.found for one in (*large, *coarse)))
    nodes = [name for one in (*large, *coarse) for name in _around(values[one.pair.found], one)]
    nodes += [one.pair.node for one in begin if one.pair.found not in unrounded and one not in still]
    return known.joined(Island(known.component, tuple(nodes), unrounded))


def _rounded_behind(one: Deviation, deviations: Sequence[Deviation], known: Island) -> Iterator[Deviation]:
    """The nearest values behind one that are still rounded, past those that are not any more."""
    for at in one.pair.sources:
        source = deviations[at]
        if source.pair.found in known.unrounded:
            yield from _rounded_behind(source, deviations, known)
        elif source.pair.half:
            yield source


def _around(value: ir.Value, seen: Deviation) -> Iterator[str]:
    """The node that makes a value and those that take it.

    Raises:
        VerificationError: one of them has to take it as it is stored.
    """
    takers = [use.node for use in value.uses()]
    outside = value.is_graph_output() or any(taker.op_type in LEFT and taker.op_type != "Cast" for taker in takers)
    if outside:
        why = "cannot hold" if seen.magnitude > _FP16_ROOM else "rounds too coarsely for what is made of them"
        raise VerificationError(
            f"{seen.pair.part} makes values up to {seen.magnitude:.3g} ({seen.pair.found}) that half precision {why}, "
            "and they leave the graph or go into the cache; no island mends that, export in a wider precision"
        )
    producer = value.producer()
    assert producer is not None and producer.name
    yield producer.name
    yield from (taker.name for taker in takers if taker.name and taker.op_type not in LEFT)
