"""Graphs of one plan in a staging folder, and their answers: what is published if they hold, or tried again if not."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.progress import MakeBar, no_bar
from vlm_trt.bundle.staging import replace_file
from vlm_trt.bundle.store import MANIFEST, Bundle, calibration_path, file_entry, graph_path, weights_path
from vlm_trt.calibration.gate import Asked, Verdict, ask, judge
from vlm_trt.calibration.linears import untied
from vlm_trt.calibration.plan_file import dumps
from vlm_trt.calibration.prepare import Job
from vlm_trt.calibration.rewrite import LayerError, Plan, rewrite
from vlm_trt.calibration.weight_file import WeightFile
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.choice import Choice


@dataclass(frozen=True)
class Bars:
    """Progress bars for a label and a total."""

    bytes: MakeBar
    count: MakeBar


NO_BARS = Bars(no_bar, no_bar)


@dataclass(frozen=True)
class Attempt:
    """What lies in the staging folder."""

    entries: tuple[GraphEntry, ...]
    layers: tuple[LayerError, ...]
    verdict: Verdict | None  # None: nobody asked

    @property
    def bytes(self) -> int:
        """Of all weights."""
        return sum(entry.weight_bytes for entry in self.entries)


def attempt(
    job: Job, plans: Mapping[Component, Plan], kept: frozenset[str], before: Asked | None, staging: Path, bars: Bars
) -> Attempt:
    """Writes the quantized graphs and asks them what the float ones were asked.

    Args:
        job: whose graphs.
        plans: what is to be done to each graph.
        kept: layers that stay in float nevertheless.
        before: the float graphs' answers; None asks nothing.
        staging: an empty folder.
        bars: progress.
    """
    written = [_write(job, component, without(plan, kept), staging, bars) for component, plan in plans.items()]
    entries = (*(entry for entry, _ in written), *(_copy(job, source, staging) for source in job.copied))
    layers = tuple(error for _, errors in written for error in errors)
    if before is None:
        return Attempt(entries, layers, None)
    after = ask(_staged(job, staging, entries), before.result.data, bars.count, before)
    return Attempt(entries, layers, judge(before, after, job.max_drop))


def without(plan: Plan, kept: frozenset[str]) -> Plan:
    """The plan with those layers left in float."""
    return replace(plan, treatments=tuple(one for one in plan.treatments if one.linear.name not in kept))


def _write(
    job: Job, component: Component, plan: Plan, staging: Path, bars: Bars
) -> tuple[GraphEntry, tuple[LayerError, ...]]:
    """One quantized graph into the staging folder."""
    source = job.work[component].entry
    graph, weights = graph_path(component, job.precision), weights_path(component, job.precision)
    (staging / graph).parent.mkdir(parents=True, exist_ok=True)
    model = untied(ir.load(job.bundle.path / source.graph.path))
    with bars.bytes(f"quantize {component}", source.weight_bytes) as bar:
        on_bytes = (lambda _: None) if bar is None else bar.update
        with WeightFile(staging / weights, on_bytes) as file:
            errors = rewrite(model, plan, file)
    (staging / graph).write_bytes(ir.serde.serialize_model(model).SerializeToString())
    made_with = calibration_path(component, job.precision)
    (staging / made_with).write_text(dumps(plan, source), encoding="utf-8")
    entry = GraphEntry(
        component=component,
        precision=job.precision,
        opset=source.opset,
        graph=file_entry(staging, graph),
        weights=file_entry(staging, weights, file.sha256),
        calibration=file_entry(staging, made_with),
    )
    return entry, errors


def _copy(job: Job, source: GraphEntry, staging: Path) -> GraphEntry:
    """A graph that no recipe changes into the staging folder, under the new precision."""
    graph, path = graph_path(source.component, job.precision), job.bundle.path
    shutil.copyfile(path / source.graph.path, staging / graph)
    weights = None
    if source.weights is not None:
        to = weights_path(source.component, job.precision)
        shutil.copyfile(path / source.weights.path, staging / to)
        weights = file_entry(staging, to)
    return replace(source, precision=job.precision, graph=file_entry(staging, graph), weights=weights)


def _staged(job: Job, staging: Path, entries: tuple[GraphEntry, ...]) -> Choice:
    """The staged graphs as a bundle of their own."""
    manifest, tokenizer = job.bundle.manifest, job.bundle.manifest.tokenizer.path
    (staging / tokenizer).parent.mkdir()
    shutil.copyfile(job.bundle.path / tokenizer, staging / tokenizer)
    replace_file(staging / MANIFEST, manifest.alone(entries).dumps())
    return Choice(Bundle.open(staging), as_stored(job.precision), job.precision, 0)
