"""The ONNX files of a bundle, as bytes: traced here, or ahead in a process of its own while large weights are written.

Tracing is Python and writing is the disk: for the 9.6 B shape each takes more than a minute, and neither has to wait.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path

import onnx_ir as ir

from vlm_trt.bundle.children import deaf_to_interrupts
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.bundle.store import weights_path
from vlm_trt.exporter.trace import trace
from vlm_trt.exporter.weight_stream import WeightPlace, plan_weights
from vlm_trt.families.weights import Weight

# Weights above which a process for tracing is worth the seconds it takes to start.
AHEAD_ABOVE_BYTES = 2 << 30


@dataclass(frozen=True)
class GraphPlan:
    """One graph to make, and where its weights will lie, if it has any."""

    component: Component
    precision: Precision
    places: tuple[WeightPlace, ...]
    weights_file: str | None  # beside the graph


def graph_plan(component: Component, precision: Precision, weights: Sequence[Weight]) -> GraphPlan:
    """The plan of a graph with those weights."""
    file = Path(weights_path(component, precision)).name if component.has_weights else None
    return GraphPlan(component, precision, plan_weights(weights, precision)[0], file)


@lru_cache(maxsize=64)  # a process that exports and audits, as tests do, traces once
def graph_file(plan: GraphPlan, model: ModelConfig, limits: Limits) -> bytes:
    """The ONNX file of one graph, its weights as references into `plan.weights_file`."""
    graph = trace(plan.component, model, limits, plan.precision)
    if plan.weights_file is not None:
        _refer(graph, plan.places, plan.weights_file)
    return bytes(ir.serde.serialize_model(graph).SerializeToString())


def _refer(graph: ir.Model, places: tuple[WeightPlace, ...], file: str) -> None:
    """Points the graph's initializers at their places in the weight file beside it."""
    for place in places:
        value = graph.graph.initializers[place.name]
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            file, place.offset, place.length, value.dtype, shape=ir.Shape(place.shape), name=place.name
        )


@contextmanager
def graph_files(
    plans: Sequence[GraphPlan], model: ModelConfig, limits: Limits, weight_bytes: int
) -> Iterator[Callable[[GraphPlan], bytes]]:
    """A function that gives the file of each plan: made when asked for, or begun at once where the weights are large.

    Raises:
        ResourceError: the process that traces was ended, as the system does when memory runs out.
    """
    if weight_bytes < AHEAD_ABOVE_BYTES:
        yield lambda plan: graph_file(plan, model, limits)
        return
    others = set(active_children())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with deaf_to_interrupts():
            begun = {plan.component: pool.submit(graph_file, plan, model, limits) for plan in plans}

        def finished(plan: GraphPlan) -> bytes:
            try:
                return begun[plan.component].result()
            except BrokenProcessPool as error:
                raise ResourceError(
                    f"the process that traces the {plan.component} was ended, most likely for lack of memory; "
                    "free some and export again"
                ) from error

        try:
            yield finished
        except BaseException:
            for child in set(active_children()) - others:
                child.terminate()  # a trace that nobody waits for any more takes a minute
            raise
        finally:
            pool.shutdown(cancel_futures=True)
