"""`vlm-trt quantize`: progress on stderr, then what it saved and what it cost; as tables or JSON."""

from dataclasses import replace
from pathlib import Path

import click

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.gate import Verdict
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import Kind, read_recipe
from vlm_trt.calibration.report import NotPublishedError, Report
from vlm_trt.commands.terminal import byte_bar, count_bar, say, size, table
from vlm_trt.evaluation.dataset import SYNTHETIC, DataSet, read_data
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.family import family

COUNT = 400  # synthetic questions
NOBODY = "none"
_SHOWN_LAYERS = 8


def run(
    bundle: Path,
    recipe: str,
    cache: str | None,
    activations: str,
    samples: str,
    evaluate: str,
    count: int | None,
    max_drop: float | None,
    as_json: bool,
    **options: bool,
) -> None:
    if evaluate == NOBODY and (options["auto"] or max_drop is not None):
        raise UsageError("--auto and --max-drop need questions that judge; leave out --evaluate none")
    if evaluate != SYNTHETIC and count is not None:
        raise UsageError(f"--count is about --evaluate {SYNTHETIC}; leave it out, a file is asked whole")
    read = read_recipe(recipe)
    read = read if cache is None else replace(read, cache=Kind(cache))
    choices = Choices(read, Precision(activations), samples, max_drop, **options)
    asked = None if evaluate == NOBODY else questions(bundle, evaluate, count)
    if choices.recipe.needs_samples and samples == SYNTHETIC:
        say("samples: drawn scenes; give pictures and questions of your own with --samples")
    try:
        report = quantize(bundle, choices, asked, say, byte_bar, count_bar)
    except NotPublishedError as refused:
        if as_json:
            click.echo(refused.report.read_text(encoding="utf-8"), nl=False)
        raise
    if as_json:
        click.echo((bundle / report.path).read_text(encoding="utf-8"), nl=False)
    else:
        click.echo(_shown(report))
    if report.kept:
        say(f"left in float: {', '.join(report.kept)}")
    say(
        f"{report.precision}: {size(report.quantized_bytes)} instead of {size(report.float_bytes)}, "
        f"{report.seconds:.0f} s; {report.path}"
    )
    if report.verdict is None or options["unverified"]:
        say(
            f"not judged, so nothing answers from them yet; run: vlm-trt verify {bundle} --precision {report.precision}"
        )
    elif report.precision.floating is Precision.FP32:
        say(f'Next: vlm-trt generate {bundle} "What is this?" --image photo.jpg --precision {report.precision}')
    else:
        say(f"Next: vlm-trt build {bundle} --precision {report.precision}")


def questions(bundle: Path, data: str, count: int | None) -> DataSet:
    """What judges: drawn scenes, or a user's file."""
    model = Bundle.open(bundle).manifest.model
    if data == SYNTHETIC:
        return synthetic(COUNT if count is None else count, 0, model)
    return read_data(Path(data), family(model.family).parser(model))


def shown(verdict: Verdict) -> str:
    """A row per task, and how far the probabilities are apart."""
    comparison = verdict.comparison
    rows = [
        (
            one.task, str(one.n), f"{one.baseline_score:.3f}", f"{one.baseline_score + one.difference:.3f}",
            f"{one.difference:+.3f}", "–" if one.same_tokens is None else f"{one.same_tokens:.1%}",
        )
        for one in (*comparison.tasks, comparison.overall)
    ]  # fmt: skip
    apart = verdict.divergence
    return (
        f"{table(rows, ('task', ' n', ' before', ' after', ' difference', ' same tokens'))}\n"
        f"next-token probabilities along {apart.answers} answers: KL {apart.mean:.4f} nats per token, largest "
        f"{apart.largest:.3f}\n"
        f"the questions took {verdict.seconds_before:.1f} s before and {verdict.seconds:.1f} s after, on this CPU"
        + "".join(f"\n{note}" for note in verdict.notes)
    )


def _shown(report: Report) -> str:
    return _layers(report) if report.verdict is None else f"{shown(report.verdict)}\n\n{_layers(report)}"


def _layers(report: Report) -> str:
    worst = sorted(report.layers, key=lambda one: -one.error)[:_SHOWN_LAYERS]
    rows = [
        (one.layer, one.kind.value, f"{one.error:.2%}", size(one.float_bytes), size(one.quantized_bytes))
        for one in worst
    ]
    return table(rows, (f"furthest of {len(report.layers)} layers", "kind", " error", " before", " after"))
