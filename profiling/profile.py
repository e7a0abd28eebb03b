"""A bundle measured: every point of a sweep, floors, layers; everything that a report shows."""

import os
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.host import query_gpus
from vlm_trt.bundle.parts import MergerConnector
from vlm_trt.bundle.progress import MakeBar
from vlm_trt.profiling.layers import Layer, layers
from vlm_trt.profiling.measure import Measured, measure
from vlm_trt.profiling.metrics import rates, request_metrics, stage_metrics
from vlm_trt.profiling.probe import Ceilings, ceilings
from vlm_trt.profiling.roofline import Gap, gaps
from vlm_trt.profiling.statistics import Rate, Summary
from vlm_trt.profiling.work import costs
from vlm_trt.profiling.workload import Workload, requests
from vlm_trt.runtime.choice import Choice
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.ort import CpuBackend

# Fields of a workload that a sweep varies.
AXES = ("batch", "images", "prompt_tokens")


def swept(base: Workload, values: Mapping[str, Sequence[int]]) -> list[Workload]:
    """The base first, and then each workload that differs from it in one field, once.

    Args:
        base: the first point.
        values: of each of `AXES`, the base's first.
    """
    varied = [replace(base, **{axis: value}) for axis, own in values.items() for value in own]
    return list(dict.fromkeys([base, *varied]))


@dataclass(frozen=True)
class Point:
    """One workload with all that is known of it."""

    measured: Measured
    requests: Mapping[str, Summary]
    rates: Mapping[str, Rate]
    stages: Mapping[str, Summary]
    roofline: Mapping[str, Gap]


@dataclass(frozen=True)
class Profile:
    """Of one bundle in one precision on one backend."""

    label: str
    family: str
    precision: str
    backend: str
    verified: bool
    threads: int | None  # of the CPU; None: one per core, or a GPU
    graphs: tuple[str, ...]
    load_ms: float
    peak_rss_bytes: int
    device_bytes: int | None
    ceilings: Ceilings | None  # None with engines: what measures the machine are graphs
    points: tuple[Point, ...]
    layers: tuple[Layer, ...]
    environment: Mapping[str, object]


def profile(
    choice: Choice,
    model: VisionLanguageModel,
    points: Sequence[Workload],
    iterations: int,
    warmup: int,
    say: Callable[[str], None],
    count_bar: MakeBar,
    *,
    per_layer: bool = True,
) -> Profile:
    """Measures every point.

    Args:
        choice: which graphs, where.
        model: the same, loaded.
        points: what is asked; floors and layers of the first are in the report.
        iterations, warmup: of every point.
        say: told what runs now.
        count_bar: a progress bar for a label and a number of iterations.
        per_layer: whether a few more answers are timed node by node.
    Raises:
        UsageError: a point does not fit the bundle, or nothing is to be measured.
    """
    if iterations < 1 or warmup < 0:
        raise UsageError(f"{iterations} iterations after {warmup} measure nothing; give 1 or more, after 0 or more")
    around = environment()
    measured = _measured(model, points, iterations, warmup, count_bar)
    peak, device = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, _device_bytes()
    engines = choice.backend.engines(choice.bundle, choice.precision)
    limits = None
    if not engines:
        say("measure what the machine can do")
        limits = ceilings(choice.backend, choice.precision.dtype)
    if per_layer:
        say("time answers node by node")
    manifest, precision = choice.bundle.manifest, choice.precision
    verdict = manifest.verification(precision, engines)
    return Profile(
        label=str(choice.bundle.path),
        family=manifest.model.family,
        precision=precision.value,
        backend=choice.backend.name,
        verified=verdict is not None and verdict.passed,
        threads=choice.backend.threads if isinstance(choice.backend, CpuBackend) else None,
        graphs=tuple(choice.bundle.graph(component, precision).identity for component in manifest.model.components),
        load_ms=model.load_ms,
        peak_rss_bytes=peak,
        device_bytes=device,
        ceilings=limits,
        points=tuple(_point(model, choice, one, limits) for one in measured),
        layers=layers(choice, points[0]) if per_layer else (),
        environment={
            **around,
            "load_average_after": os.getloadavg()[0],
            "clocks_after": {name: environment()[name] for name in ("clock_mhz", "gpu_clock")},
        },
    )


def _measured(
    model: VisionLanguageModel, points: Sequence[Workload], iterations: int, warmup: int, count_bar: MakeBar
) -> list[Measured]:
    """Every point, after all that may be refused."""
    for workload in points:
        requests(model, workload)
    found = []
    for workload in points:
        with count_bar(workload.label, warmup + iterations) as bar:
            step = (lambda: None) if bar is None else partial(bar.update, 1)
            found.append(measure(model, workload, iterations, warmup, step))
    return found


def _point(model: VisionLanguageModel, choice: Choice, measured: Measured, limits: Ceilings | None) -> Point:
    stages, workload = stage_metrics(measured), measured.workload
    tiles, patches = _shown(model, workload)
    needed = costs(
        model.manifest.model,
        weight_bytes(choice),
        choice.precision,
        workload,
        measured.iterations[0].requests[0].prompt_tokens,
        min(tiles, model.engine.limits.max_images),
        patches,
    )
    floors = {} if limits is None else gaps(needed, stages, limits, choice.precision)
    return Point(measured, request_metrics(measured), rates(measured), stages, floors)


def _shown(model: VisionLanguageModel, workload: Workload) -> tuple[int, int]:
    """Tiles of one request's pictures, and patches of each tile."""
    kind, spans = model.engine.model, requests(model, workload)[0].prompt.spans
    if isinstance(kind.connector, MergerConnector):
        tokens = spans[0].stop - spans[0].start if spans else 0
        return len(spans), tokens * kind.connector.token_side**2
    return sum(span.stop - span.start for span in spans) // kind.tile_tokens, kind.most_patches


def weight_bytes(choice: Choice) -> dict[Component, int]:
    """Of the graphs; an engine reads as many."""
    components = choice.bundle.manifest.model.components
    return {one: choice.bundle.graph(one, choice.precision).weight_bytes for one in components}


def _device_bytes() -> int | None:
    """Used on all GPUs together while this runs, as the driver counts; None without one."""
    used = [line[0].split()[0] for line in query_gpus("memory.used")]
    return sum(int(mib) << 20 for mib in used if mib.isdigit()) if used else None
