"""Bundle in, quantized graphs in the same bundle: observed, rewritten, and published if their answers hold."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.bundle.leftovers import open_to_write
from vlm_trt.bundle.lock import at_work
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import MakeBar, no_bar
from vlm_trt.bundle.staging import require_room, staging_folder
from vlm_trt.bundle.store import Bundle, how_to_make, publish_graphs
from vlm_trt.calibration import state
from vlm_trt.calibration.attempt import NO_BARS, Attempt, Bars, attempt
from vlm_trt.calibration.audit import audit
from vlm_trt.calibration.gate import Asked, Verdict, ask, costliest, judge, record, record_refusal
from vlm_trt.calibration.gate import as_json as verdict_json
from vlm_trt.calibration.planning import name_of, planned
from vlm_trt.calibration.prepare import Choices, Job, prepare
from vlm_trt.calibration.recipe import require_max_drop
from vlm_trt.calibration.report import (
    NotPublishedError,
    Report,
    as_json,
    quantization_of,
    read_report,
    report_of,
    write_picture,
    write_report,
)
from vlm_trt.calibration.rewrite import Plan
from vlm_trt.calibration.samples import require_apart
from vlm_trt.calibration.search import fewest_kept
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.choice import Choice


def quantize(
    path: Path,
    choices: Choices,
    questions: DataSet | None,
    say: Callable[[str], None] = lambda _: None,
    byte_bar: MakeBar = no_bar,
    count_bar: MakeBar = no_bar,
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
        NotPublishedError: the answers are too much worse; nothing but the report is written.
        UsageError: the drop allowed is no share; nothing is written.
        UsageError, VerificationError, DataSetError, PromptError, BundleError: as `prepare` has it; nothing is written.
        StorageError: no room, no permission, or another process quantizes graphs of the bundle.
    """
    require_max_drop(choices.recipe.max_drop if choices.max_drop is None else choices.max_drop)
    bundle, bars = open_to_write(path, say), Bars(byte_bar, count_bar)
    with at_work(bundle.path):
        job = prepare(path, choices, questions)
        try:
            report = _quantized(job, say, bars)
        except VerificationError:  # refused, not interrupted: there is nothing to go on with
            state.remove(path, name_of(job))
            raise
        state.remove(path, name_of(job))
    return report


def _quantized(job: Job, say: Callable[[str], None], bars: Bars) -> Report:
    started, path, questions = perf_counter(), job.bundle.path, job.questions
    if job.samples is not None:
        say(job.samples.summary())
    require_room(path, job.most_bytes)
    plans = planned(job, bars.count, say)
    before = None if questions is None else ask(job.float_graphs, questions, bars.count)
    kept: frozenset[str] = frozenset()
    verdict: Verdict | None = None
    if job.choices.auto and before is not None:
        kept, verdict = fewest_kept(lambda layers: _tried(job, plans, layers, before, bars), say)
    with staging_folder(path / "graphs") as staging:
        made = attempt(job, plans, kept, before if verdict is None else None, staging, bars)
        if verdict is not None:
            made = replace(made, verdict=verdict)  # the search's: the same graphs, byte for byte
        report = report_of(job, plans, kept, made, perf_counter() - started)
        _publish(job, report, staging, made.entries)
    return report


def _tried(job: Job, plans: Mapping[Component, Plan], kept: frozenset[str], before: Asked, bars: Bars) -> Attempt:
    with staging_folder(job.bundle.path / "graphs") as staging:
        return attempt(job, plans, kept, before, staging, bars)


def judge_published(
    path: Path,
    precision: Precision,
    questions: DataSet,
    max_drop: float,
    bars: Bars = NO_BARS,
    say: Callable[[str], None] = lambda _: None,
) -> Verdict:
    """A verdict on quantized graphs of a bundle, recorded in any case: first on their numbers, then on their answers.

    Args:
        path: the bundle, with the float graphs that they were made from.
        precision: of the quantized ones.
        questions: what the answers are judged by.
        max_drop: of any task's score that they may cost.
        bars: progress.
        say: told what killed runs had left.
    Raises:
        VerificationError: the float graphs are not verified, or not those the quantized ones were made from; or these
            are not what their quantization makes of those.
        UsageError: `max_drop` is no share.
        DataSetError: a question is about a picture that was calibrated on.
        BundleError: graphs are missing or damaged.
        PromptError, ImageError: a question cannot be asked.
    """
    require_max_drop(max_drop)
    bundle = open_to_write(path, say)
    floats = bundle.manifest.verification(precision.floating)
    if floats is None or not floats.passed:
        raise VerificationError(
            f"{path}: the {precision.floating} graphs, which the answers are compared with, were not shown equal to "
            f"the model; run: vlm-trt verify {path} --precision {precision.floating}"
        )
    made = bundle.manifest.quantization(precision)
    if made is None or made.floats != floats.graphs:
        raise VerificationError(
            f"{path}: the {precision} graphs were made from other {precision.floating} graphs than those there; "
            f"{how_to_make(precision, path)} --force"
        )
    require_apart(set(made.pictures), questions.examples, questions.name)
    report, numbers = read_report(bundle, precision), audit(bundle, precision, bars.bytes)
    if numbers.failures:
        record_refusal(bundle, precision, numbers.failures, report)
        raise VerificationError(
            f"{path}: the {precision} graphs are not what their quantization makes of the {precision.floating} ones: "
            f"{'; '.join(numbers.failures)}"
        )
    before = ask(Choice(bundle, as_stored(precision), precision.floating, 0), questions, bars.count)
    after = ask(Choice(bundle, as_stored(precision), precision, 0), questions, bars.count, before)
    verdict = replace(judge(before, after, max_drop), notes=(numbers.summary,))
    record(bundle, precision, verdict, report)
    return verdict


def _publish(job: Job, report: Report, staging: Path, entries: tuple[GraphEntry, ...]) -> None:
    """
    Raises:
        NotPublishedError: the verdict is bad; the report is in the bundle, the graphs are not.
    """
    made, verdict, target = as_json(job, report), report.verdict, job.bundle.path / report.path
    if verdict is not None and not verdict.passed:
        target = target.with_stem(f"{target.stem}-refused")  # graphs of an earlier run keep their report
        write_report(target, {**made, "judged": verdict_json(verdict)})
        write_picture(report, target)
        remedy = (
            f" The layers furthest from what they were: {costliest(report.layers)}; keep some of them in float (a "
            "recipe's [layers], or --auto, which finds them), or allow more with --max-drop."
        )
        raise NotPublishedError(
            f"{job.bundle.path}: {verdict.refusal(job.precision)}. Nothing is published.{remedy * verdict.judges} "
            f"All of it is in {target}",
            report=target,
        )
    _require_unchanged(job)
    publish_graphs(job.bundle, staging, entries, quantization_of(job))
    if verdict is not None and job.verified:
        record(job.bundle, job.precision, verdict, made)
    else:
        write_report(target, {**made, "judged": None if verdict is None else verdict_json(verdict)})
    write_picture(report, target)


def _require_unchanged(job: Job) -> None:
    """
    Raises:
        VerificationError: the float graphs were replaced while this ran.
    """
    now = {entry.identity for entry in Bundle.open(job.bundle.path).manifest.graphs}
    if not now.issuperset(job.floats):
        raise VerificationError(
            f"{job.bundle.path}: its {job.choices.floating} graphs were replaced meanwhile, so nothing is published; "
            "run it again"
        )
