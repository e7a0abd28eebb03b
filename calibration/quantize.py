"""Bundle in, quantized graphs in the same bundle: observed, rewritten, and published if their answers hold."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import onnx_ir as ir

from bundle.entries import GraphEntry
from bundle.errors import VerificationError
from bundle.manifest import Verification
from bundle.progress import Bar
from bundle.signature import Component, Precision
from bundle.staging import replace_file, require_room, staging_folder
from bundle.store import MANIFEST, Bundle, file_entry, graph_paths, publish_graphs
from calibration import state
from calibration.gate import Verdict, answers, costliest, judge
from calibration.planning import CountBar, plans
from calibration.prepare import Choices, Job, prepare
from calibration.rewrite import LayerError, Plan, rewrite
from evaluation.dataset import DataSet
from runtime.model import Choice
from runtime.ort import CpuBackend

ByteBar = Callable[[str, int], AbstractContextManager[Bar | None]]


def no_bar(label: str, total: int) -> AbstractContextManager[Bar | None]:
    return nullcontext()


@dataclass(frozen=True)
class Report:
    """What was done, and what it costs."""

    precision: Precision
    layers: tuple[LayerError, ...]
    verdict: Verdict
    max_drop: float
    float_bytes: int  # of all graphs' weights
    quantized_bytes: int
    seconds: float
    path: str  # of the report in the bundle


def quantize(
    path: Path,
    choices: Choices,
    questions: DataSet,
    say: Callable[[str], None] = lambda _: None,
    byte_bar: ByteBar = no_bar,
    count_bar: CountBar = no_bar,
) -> Report:
    """Adds quantized graphs to a bundle, unless their answers are worse than the recipe allows.

    Args:
        path: the bundle, with verified float graphs.
        choices: recipe and samples.
        questions: what the answers are judged by; no picture of it is among the samples.
        say: told what runs now.
        byte_bar, count_bar: progress bars for a label and a total.
    Returns:
        The report, also written to `reports/`, in any case.
    Raises:
        VerificationError: the answers are too much worse; nothing but the report is written.
        UsageError, DataSetError, BundleError: as `prepare` has it; nothing is written.
        StorageError: no room, or no permission.
    """
    started = perf_counter()
    job = prepare(path, choices, questions)
    float_bytes = sum(work.entry.weights.size for work in job.work.values())
    require_room(path, float_bytes)
    planned = plans(job, count_bar, say)
    with staging_folder(path / "graphs") as staging:
        written = [_write(job, component, plan, staging, byte_bar) for component, plan in planned.items()]
        entries = tuple(entry for entry, _ in written)
        layers = tuple(error for _, errors in written for error in errors)
        verdict = _verdict(job, staging, entries, questions, count_bar)
        report = Report(
            precision=job.precision,
            layers=layers,
            verdict=verdict,
            max_drop=_max_drop(choices),
            float_bytes=float_bytes,
            quantized_bytes=sum(entry.weights.size for entry in entries),
            seconds=perf_counter() - started,
            path=f"reports/quantization-{job.precision}.json",
        )
        _publish(job, report, questions, staging, entries)
    state.clear(path)
    return report


def _max_drop(choices: Choices) -> float:
    return choices.recipe.max_drop if choices.max_drop is None else choices.max_drop


def _write(
    job: Job, component: Component, plan: Plan, staging: Path, byte_bar: ByteBar
) -> tuple[GraphEntry, tuple[LayerError, ...]]:
    """One quantized graph into the staging folder."""
    source = job.work[component].entry
    graph, weights = graph_paths(component, job.precision)
    (staging / graph).parent.mkdir(parents=True, exist_ok=True)
    model = ir.load(job.bundle.path / source.graph.path)
    with byte_bar(f"quantize {component}", source.weights.size) as bar:
        on_bytes = (lambda _: None) if bar is None else bar.update
        digest, errors = rewrite(model, plan, staging / weights, on_bytes)
    (staging / graph).write_bytes(ir.serde.serialize_model(model).SerializeToString())
    entry = GraphEntry(
        component=component,
        precision=job.precision,
        opset=source.opset,
        graph=file_entry(staging, graph),
        weights=file_entry(staging, weights, digest),
    )
    return entry, errors


def _verdict(
    job: Job, staging: Path, entries: tuple[GraphEntry, ...], questions: DataSet, count_bar: CountBar
) -> Verdict:
    """The staged graphs' answers against those of the float ones."""
    manifest, tokenizer = job.bundle.manifest, job.bundle.manifest.tokenizer.path
    (staging / tokenizer).parent.mkdir()
    shutil.copyfile(job.bundle.path / tokenizer, staging / tokenizer)
    alone = replace(manifest, graphs=entries, engines=(), verifications=())
    replace_file(staging / MANIFEST, alone.dumps())
    results = []
    for choice in (job.float_graphs, Choice(Bundle.open(staging), CpuBackend(), job.precision, 0)):
        with count_bar(f"ask {choice.precision}", len(questions.examples)) as bar:
            results.append(answers(choice, questions, (lambda _: None) if bar is None else bar.update))
    return judge(results[1], results[0], _max_drop(job.choices))


def _publish(job: Job, report: Report, questions: DataSet, staging: Path, entries: tuple[GraphEntry, ...]) -> None:
    """
    Raises:
        VerificationError: the verdict is bad; the report is in the bundle, the graphs are not.
    """
    text = json.dumps(document(job, report, questions), indent=1, ensure_ascii=False) + "\n"
    target = job.bundle.path / report.path
    if not report.verdict.passed:
        target.parent.mkdir(exist_ok=True)
        replace_file(target, text)
        raise VerificationError(
            f"{job.bundle.path}: the {job.precision} answers are too much worse, so nothing is published: "
            f"{'; '.join(report.verdict.failures)}. The layers furthest from what they were: "
            f"{costliest(report.layers)}; keep some of them in float (a recipe's [layers]), or allow more with "
            f"--max-drop. All of it is in {target}"
        )
    overall = report.verdict.comparison.overall
    publish_graphs(job.bundle, staging, entries)
    verdict = Verification(
        precision=job.precision,
        backend=CpuBackend.name,
        passed=True,
        report=report.path,
        graphs=tuple(sorted(entry.identity for entry in entries)),
        engines=(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        figures={"score": overall.baseline_score + overall.difference, "difference": overall.difference},
    )
    job.bundle.record(verdict, text)


def document(job: Job, report: Report, questions: DataSet) -> dict[str, Any]:
    """The report as JSON values."""
    samples = job.samples
    return {
        "precision": job.precision,
        "passed": report.verdict.passed,
        "failures": report.verdict.failures,
        "max_drop": report.max_drop,
        "recipe": asdict(job.choices.recipe),
        "samples": None
        if samples is None
        else {"name": samples.name, "sha256": samples.sha256, "count": len(samples.samples)},
        "coverage": None if samples is None else samples.coverage,
        "questions": {"name": questions.name, "sha256": questions.sha256, "count": len(questions.examples)},
        "tasks": [asdict(one) for one in report.verdict.comparison.tasks],
        "overall": asdict(report.verdict.comparison.overall),
        "layers": [asdict(one) for one in sorted(report.layers, key=lambda one: -one.error)],
        "float_bytes": report.float_bytes,
        "quantized_bytes": report.quantized_bytes,
        "seconds": round(report.seconds, 1),
    }
