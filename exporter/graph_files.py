"""The ONNX files of a bundle, as bytes: traced here, or ahead in a process of its own while large weights are written.

Tracing is Python and writing is the disk: for the 9.6 B shape each takes more than a minute, and neither has to wait.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import onnx_ir as ir

from vlm_trt.bundle.children import deaf_to_interrupts
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import ResourceError, UsageError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import weights_path
from vlm_trt.exporter.packed_weights import GraphWeights, PackedLayer
from vlm_trt.exporter.trace import trace
from vlm_trt.exporter.weight_stream import WeightPlace, plan_weights

# Weights above which a process for tracing is worth the seconds it takes to start.
AHEAD_ABOVE_BYTES = 2 << 30


@dataclass(frozen=True)
class GraphPlan:
    """One graph to make, and where its weights will lie, if it has any."""

    component: Component
    precision: Precision
    places: tuple[WeightPlace, ...]
    weights_file: str | None  # beside the graph
    packed: tuple[PackedLayer, ...] = ()  # layers whose matrices have 4 bits


def graph_plan(component: Component, precision: Precision, own: GraphWeights) -> GraphPlan:
    """The plan of a graph with those weights."""
    file = Path(weights_path(component, precision)).name if component.has_weights else None
    return GraphPlan(component, precision, plan_weights(own.weights, precision)[0], file, own.packed)


def graph_file(plan: GraphPlan, model: ModelConfig, limits: Limits) -> bytes:
    """The ONNX file of one graph, its weights as references into `plan.weights_file`.

    Of the limits only the decoder's graph has one, the length of its cache; the sampler is the same in every precision.
    """
    own = replace(plan, precision=plan.precision if plan.component.has_weights else Precision.FP32)
    return remembered(own, model, Limits(limits.max_seq_tokens if plan.component is Component.DECODER else 1, 1, 1))


@lru_cache(maxsize=64)  # a process that exports and audits, as tests do, traces once
def remembered(plan: GraphPlan, model: ModelConfig, limits: Limits) -> bytes:
    """`graph_file`, given nothing that makes no difference."""
    graph = trace(plan.component, model, limits, plan.precision, plan.packed)
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
        UsageError: it ended by itself.
    """
    if weight_bytes < AHEAD_ABOVE_BYTES:
        yield lambda plan: graph_file(plan, model, limits)
        return
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_trace_all, args=(theirs, plans, model, limits), daemon=True)
    with deaf_to_interrupts():
        process.start()
    theirs.close()  # the only one left is the child's: wherever its end strikes, even within a file, reading ends, too
    with ours, ThreadPoolExecutor(1, "traced graphs") as reading:
        files = {plan.component: reading.submit(_received, ours, plan, process) for plan in plans}
        try:
            yield lambda plan: files[plan.component].result()
        finally:
            process.kill()  # a trace that nobody waits for any more takes a minute
            process.join()


def _trace_all(results: Connection, plans: Sequence[GraphPlan], model: ModelConfig, limits: Limits) -> None:
    for plan in plans:
        try:
            results.send(graph_file(plan, model, limits))
        except Exception as error:
            results.send(error)


def _received(results: Connection, plan: GraphPlan, process: BaseProcess) -> bytes:
    try:
        result: bytes | Exception = results.recv()
    except (EOFError, OSError) as error:
        process.join()  # its end of the pipe is closed, by its end
        raise _ended(process.exitcode, plan) from error
    if isinstance(result, Exception):
        raise result
    return result


def _ended(exit_code: int | None, plan: GraphPlan) -> VlmTrtError:
    if exit_code is not None and exit_code > 0:
        return UsageError(
            f"the process that traces the {plan.component} ended with code {exit_code}, as it does where a script "
            "exports as soon as it is read, which that process does again; put the call below "
            'if __name__ == "__main__":'
        )
    return ResourceError(
        f"the process that traces the {plan.component} was ended, most likely for lack of memory; "
        "free some and export again"
    )
