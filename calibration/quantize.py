"""Bundle in, quantized graphs in the same bundle: observed, rewritten, and published if their answers hold."""

import json
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bundle.entries import GraphEntry
from bundle.errors import VerificationError
from bundle.progress import Bar
from bundle.signature import Component, Precision
from bundle.staging import replace_file, require_room, staging_folder, storage_errors
from bundle.store import Bundle, how_to_make, publish_graphs
from calibration import state
from calibration.attempt import Attempt, Bars, ByteBar, attempt
from calibration.gate import CountBar, Verdict, as_text, ask, costliest, document, judge, record, report_path
from calibration.picture import error_picture
from calibration.planning import plans
from calibration.prepare import Choices, Job, prepare
from calibration.rewrite import LayerError, Plan
from calibration.search import fewest_kept
from evaluation.dataset import DataSet
from evaluation.result import Result
from runtime.model import Choice
from runtime.ort import CpuBackend


def no_bar(label: str, total: int) -> AbstractContextManager[Bar | None]:
    return nullcontext()


@dataclass(frozen=True)
class Report:
    """What was done, and what it costs."""

    precision: Precision
    layers: tuple[LayerError, ...]
    kept: tuple[str, ...]  # layers that the search left in float
    limits: Mapping[str, float]  # activation → the largest magnitude that 8 bits show of it
    verdict: Verdict | None  # None: not judged yet
    float_bytes: int  # of all graphs' weights
    quantized_bytes: int
    seconds: float
    path: str  # of the report in the bundle


def quantize(
    path: Path,
    choices: Choices,
    questions: DataSet | None,
    say: Callable[[str], None] = lambda _: None,
    byte_bar: ByteBar = no_bar,
    count_bar: CountBar = no_bar,
) -> Report:
    """Adds quantized graphs to a bundle, unless their answers are worse than the recipe allows.

    Args:
        path: the bundle, with verified float graphs.
        choices: recipe and samples.
        questions: what the answers are judged by; no picture of it is among the samples. None publishes graphs
            without a verdict, which nothing answers from before `judge_published` has given one.
        say: told what runs now.
        byte_bar, count_bar: progress bars for a label and a total.
    Returns:
        The report, also written to `reports/`, in any case.
    Raises:
        VerificationError: the answers are too much worse; nothing but the report is written.
        UsageError, DataSetError, BundleError: as `prepare` has it; nothing is written.
        StorageError: no room, or no permission.
    """
    started, bars = perf_counter(), Bars(byte_bar, count_bar)
    job = prepare(path, choices, questions)
    float_bytes = sum(work.entry.weights.size for work in job.work.values())
    require_room(path, float_bytes)
    planned = plans(job, count_bar, say)
    before = None if questions is None else ask(job.float_graphs, questions, count_bar)
    kept: frozenset[str] = frozenset()
    if choices.auto and before is not None:
        kept = fewest_kept(lambda layers: _tried(job, planned, layers, before, bars), say)
    with staging_folder(path / "graphs") as staging:
        made = attempt(job, planned, kept, before, staging, bars)
        report = Report(
            precision=job.precision,
            layers=made.layers,
            kept=tuple(sorted(kept)),
            limits=_limits(planned),
            verdict=made.verdict,
            float_bytes=float_bytes,
            quantized_bytes=sum(entry.weights.size for entry in made.entries),
            seconds=perf_counter() - started,
            path=report_path(job.precision),
        )
        _publish(job, report, staging, made.entries)
    state.clear(path)
    return report


def _limits(planned: Mapping[Component, Plan]) -> dict[str, float]:
    return {
        f"{component}.{source}": known.limit
        for component, plan in planned.items()
        for source, known in plan.activations.items()
    }


def read_report(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """What a bundle says of how its quantized graphs were made; nothing where it cannot be read."""
    try:
        found = json.loads((bundle.path / report_path(precision)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _tried(job: Job, planned: Mapping[Component, Plan], kept: frozenset[str], before: Result, bars: Bars) -> Attempt:
    with staging_folder(job.bundle.path / "graphs") as staging:
        return attempt(job, planned, kept, before, staging, bars)


def judge_published(
    path: Path, precision: Precision, questions: DataSet, max_drop: float, count_bar: CountBar = no_bar
) -> Verdict:
    """A verdict on quantized graphs of a bundle, recorded in any case.

    Args:
        path: the bundle, with the float graphs that they were made from.
        precision: of the quantized ones.
        questions: what the answers are judged by.
        max_drop: of any task's score that they may cost.
        count_bar: a progress bar for a label and a number of questions.
    Raises:
        VerificationError: the float graphs are not verified, or not those the quantized ones were made from.
        BundleError: graphs are missing or damaged.
        PromptError, ImageError: a question cannot be asked.
    """
    bundle = Bundle.open(path)
    floats = bundle.manifest.verification(precision.floating)
    if floats is None or not floats.passed:
        raise VerificationError(
            f"{path}: the {precision.floating} graphs, which the answers are compared with, were not shown equal to "
            f"the model; run: vlm-trt verify {path} --precision {precision.floating}"
        )
    report = read_report(bundle, precision)
    if report.get("floats", list(floats.graphs)) != list(floats.graphs):
        raise VerificationError(
            f"{path}: the {precision} graphs were made from other {precision.floating} graphs than those there; "
            f"{how_to_make(precision, path)} --force"
        )
    before, after = (
        ask(Choice(bundle, CpuBackend(), one, 0), questions, count_bar) for one in (precision.floating, precision)
    )
    verdict = judge(before, after, max_drop)
    record(bundle, precision, verdict, report)
    return verdict


def _publish(job: Job, report: Report, staging: Path, entries: tuple[GraphEntry, ...]) -> None:
    """
    Raises:
        VerificationError: the verdict is bad; the report is in the bundle, the graphs are not.
    """
    made, verdict = _document(job, report), report.verdict
    if verdict is not None and not verdict.passed:
        # Under a name of its own: graphs of an earlier run keep their report.
        target = job.bundle.path / report.path.replace(".json", "-refused.json")
        _write_report(target, report, {**made, "judged": document(verdict)})
        raise VerificationError(
            f"{job.bundle.path}: the {job.precision} answers are too much worse, so nothing is published: "
            f"{'; '.join(verdict.failures)}. The layers furthest from what they were: {costliest(report.layers)}; "
            "keep some of them in float (a recipe's [layers], or --auto, which finds them), or allow more with "
            f"--max-drop. All of it is in {target}"
        )
    _require_unchanged(job)
    publish_graphs(job.bundle, staging, entries)
    judged = None if verdict is None else document(verdict)
    _write_report(job.bundle.path / report.path, report, {**made, "judged": judged})
    if verdict is not None and job.verified:
        record(job.bundle, job.precision, verdict, made)


def _require_unchanged(job: Job) -> None:
    """
    Raises:
        VerificationError: the float graphs were replaced while this ran.
    """
    now = {entry.identity for entry in Bundle.open(job.bundle.path).manifest.graphs}
    if any(work.entry.identity not in now for work in job.work.values()):
        raise VerificationError(
            f"{job.bundle.path}: its {job.choices.floating} graphs were replaced meanwhile, so nothing is published; "
            "run it again"
        )


def _write_report(target: Path, report: Report, content: dict[str, Any]) -> None:
    """The report, and beside it the picture of the layers."""
    title = f"{report.precision}: error of each layer's product, relative, on the samples"
    with storage_errors(target):
        target.parent.mkdir(exist_ok=True)
    replace_file(target, as_text(content))
    replace_file(target.with_suffix(".svg"), error_picture(title, report.layers))


def _document(job: Job, report: Report) -> dict[str, Any]:
    """What was done, as JSON values."""
    samples = job.samples
    return {
        "precision": job.precision,
        "floats": sorted(work.entry.identity for work in job.work.values()),
        "recipe": asdict(job.choices.recipe),
        "samples": None
        if samples is None
        else {"name": samples.name, "sha256": samples.sha256, "count": len(samples.samples)},
        "coverage": None if samples is None else samples.coverage,
        "kept": report.kept,
        "activation_limits": dict(report.limits),
        "layers": [asdict(one) for one in sorted(report.layers, key=lambda one: -one.error)],
        "float_bytes": report.float_bytes,
        "quantized_bytes": report.quantized_bytes,
        "seconds": round(report.seconds, 1),
    }
