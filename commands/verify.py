"""`vlm-trt verify`: the verdict as a table, and its exit code."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import Bundle, how_to_make
from vlm_trt.bundle.tensorrt import MODULES
from vlm_trt.calibration.attempt import Bars
from vlm_trt.calibration.gate import as_json as verdict_json
from vlm_trt.calibration.quantize import judge_published
from vlm_trt.commands.quantize import questions, shown
from vlm_trt.commands.terminal import byte_bar, count_bar, figure, say, table
from vlm_trt.evaluation.dataset import SYNTHETIC
from vlm_trt.verification.figures import Figures
from vlm_trt.verification.verify import Report, verify


def run(
    bundle: Path,
    against: Path | None,
    adapters: Sequence[Path],
    precision: str | None,
    backend: str,
    evaluate: str | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    quantized = precision is not None and Precision(precision).quantization is not None
    for option, given in (("--against", against), ("--lora", adapters)):
        if quantized and given:
            raise UsageError(f"quantized graphs are compared with the float graphs of the bundle; leave out {option}")
    if precision is not None and quantized and backend not in MODULES:
        _judge(bundle, Precision(precision), backend, evaluate, max_drop, as_json)
        return
    if evaluate is not None or max_drop is not None:
        raise UsageError("--evaluate and --max-drop are about quantized graphs; name them with --precision")
    report = verify(bundle, against, precision, backend, lambda what: say(f"  {what} ..."), byte_bar, adapters)
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        click.echo(table(_worst(report.figures), ("stage", " checks", " max abs", " relative", " cosine")))
        for note in report.notes:
            click.echo(f"  {note}")
        for sentence in report.failures:
            click.echo(click.style(f"  FAILED {sentence}", fg="red"))
    if not report.passed:
        raise VerificationError(
            f"{bundle}: the {report.precision} graphs are not equal to the model ({len(report.failures)} checks "
            f"failed); they stay refused. {_remedy(bundle, report)}"
        )
    say(f"verified: {report.precision} on {report.backend}, {len(report.figures)} comparisons, {report.seconds:.1f} s")


def _remedy(bundle: Path, report: Report) -> str:
    if any(sentence.startswith("audit: ") for sentence in report.failures):
        return f"Their files hold something else than an export writes; {how_to_make(report.precision, bundle)} --force"
    if report.precision.floating is Precision.FP32:
        return "Export in a wider precision, or report this model"
    if report.precision.kind is not None:
        return "Export in a wider precision, or report this model"
    diagnose = f"vlm-trt diagnose {bundle} --precision {report.precision}"
    return f"Export in a wider precision, or find out where they are off: {diagnose}"


def _judge(
    bundle: Path, precision: Precision, backend: str, evaluate: str | None, max_drop: float | None, as_json: bool
) -> None:
    """The answers of quantized graphs against those of the graphs they were made from."""
    if backend not in ("auto", "cpu"):
        raise UsageError(f"quantized graphs are judged on the CPU; leave out --backend {backend}")
    opened = Bundle.open(bundle)
    flavours = precision.flavours(FLOATS)
    precision = next((one for one in flavours if one in opened.manifest.precisions()), precision)
    made = opened.manifest.quantization(precision)
    if made is None:
        raise UsageError(f"{bundle} has no {precision} graphs that were quantized; {how_to_make(precision, bundle)}")
    allowed = made.max_drop if max_drop is None else max_drop
    asked = questions(bundle, evaluate or SYNTHETIC, None)
    verdict = judge_published(bundle, precision, asked, allowed, Bars(byte_bar, count_bar), say)
    click.echo(json.dumps(verdict_json(verdict), indent=2, ensure_ascii=False) if as_json else shown(verdict))
    if not verdict.passed:
        remedy = ". Quantize with other samples, or keep more layers in float" if verdict.judges else ""
        raise VerificationError(f"{bundle}: {verdict.refusal(precision)}; the graphs stay refused{remedy}")
    say(f"its answers held: {precision}, {len(verdict.questions.examples)} questions")


def _worst(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A row per stage: how often it was compared, and the worst of it."""
    rows: list[tuple[str, ...]] = []
    for stage in dict.fromkeys(one.stage for one in figures):
        own = [one for one in figures if one.stage == stage]
        largest, relative = max(one.max_abs for one in own), max(one.relative for one in own)
        cosine = min(one.cosine for one in own)
        rows.append((stage, str(len(own)), f"{largest:.2e}", f"{relative:.2e}", figure(cosine)))
    return rows
