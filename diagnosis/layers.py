"""Which layers of quantized graphs to leave in float, from what was seen of their values."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.linears import find_linears
from vlm_trt.diagnosis.compare import Deviation
from vlm_trt.diagnosis.diagnose import Diagnosis

# Layers are named until they make up this share of the error that all products add.
_SHARE = 0.5


@dataclass(frozen=True)
class Added:
    """The error that one product adds to what its inputs brought."""

    layer: str  # as recipes call it
    error: float  # 1 − cosine, beyond that of its input


def added(bundle: Bundle, diagnosis: Diagnosis) -> tuple[Added, ...]:
    """Of every layer, the largest first."""
    found = [one for component in PIPELINE for one in _added(bundle, diagnosis, component)]
    return tuple(sorted(found, key=lambda one: -one.error))


def costliest(errors: Sequence[Added]) -> tuple[str, ...]:
    """The fewest layers that add half of the error."""
    total, kept, chosen = sum(one.error for one in errors), 0.0, []
    for one in errors:
        if kept >= _SHARE * total:
            break
        kept += one.error
        chosen.append(one.layer)
    return tuple(chosen)


def _added(bundle: Bundle, diagnosis: Diagnosis, component: Component) -> list[Added]:
    model = ir.load(bundle.path / bundle.graph(component, diagnosis.reference).graph.path)
    names = {linear.node: linear.name for linear in find_linears(model, component)}
    seen = diagnosis.deviations[component]
    return [Added(names[one.pair.node], _own(one, seen)) for one in seen if one.pair.node in names]


def _own(one: Deviation, seen: Sequence[Deviation]) -> float:
    brought = max((1 - seen[source].cosine for source in one.pair.sources), default=0.0)
    return max(0.0, 1 - one.cosine - brought)
