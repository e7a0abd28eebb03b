"""The region heads' graph, or the engine built from it, against the model's."""

from collections.abc import Iterator

import numpy as np

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.signature import Signature, Tensor, signature
from vlm_trt.runtime.backend import NUMPY_DTYPES, bind_all, bind_host, contiguous, to_float32
from vlm_trt.runtime.engine import Engine
from vlm_trt.verification.expected import Expected, Floats, RegionAsked
from vlm_trt.verification.figures import Tolerance, compare, failure
from vlm_trt.verification.outcome import Outcome


def region_outputs(engine: Engine, asked: RegionAsked) -> dict[str, Floats]:
    """The outputs of an engine's region heads by name, of as many rows at once as it takes."""
    contract = signature(Component.REGION, engine.model, engine.limits, engine.precision)
    given = {"hidden_states": asked.hidden_states, "coordinate": asked.coordinate, "size": asked.size}
    runs = [
        _run(engine, contract, {name: rows[start : start + engine.limits.max_batch] for name, rows in given.items()})
        for start in range(0, len(asked.size), engine.limits.max_batch)
    ]
    return {one.name: np.concatenate([run[one.name] for run in runs]) for one in contract.outputs}


def check_region(engine: Engine, expected: Expected, label: str, tolerance: Tolerance) -> Iterator[Outcome]:
    """Every row's coordinates and sizes, and what the decoder is given for theirs; nothing of a model without."""
    if expected.asked is None:
        return
    try:
        found = region_outputs(engine, expected.asked)
    except VlmTrtError as error:
        yield Outcome(failures=(f"region{label}: it does not run: {error}",))
        return
    figures = tuple(compare("region", f"{name}{label}", expected.region[name], found[name]) for name in found)
    judged = (failure(one, tolerance) for one in figures)
    yield Outcome(figures, tuple(sentence for sentence in judged if sentence is not None))


def _run(engine: Engine, contract: Signature, given: dict[str, Floats]) -> dict[str, Floats]:
    kept = contiguous(given)
    rows = len(kept["size"])
    outputs = {one.name: np.zeros(_shape(one, rows), NUMPY_DTYPES[one.dtype]) for one in contract.outputs}
    bound = {one.name: bind_host(outputs[one.name], one.dtype) for one in contract.outputs}
    engine.sessions[Component.REGION].run(bind_all(kept), bound)
    return {one.name: to_float32(outputs[one.name], one.dtype) for one in contract.outputs}


def _shape(tensor: Tensor, rows: int) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else rows for axis in tensor.axes)
