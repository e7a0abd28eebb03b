"""`vlm-trt verify`: the verdict as a table, and its exit code."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from bundle.errors import VerificationError
from commands.terminal import say, table
from verification.figures import Figures
from verification.verify import verify


def run(bundle: Path, against: Path | None, precision: str | None, backend: str, as_json: bool) -> None:
    report = verify(bundle, against, precision, backend, progress=lambda what: say(f"  {what} ..."))
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
            "failed); they stay refused. Export again in a wider precision, or report this model"
        )
    say(f"verified: {report.precision} on {report.backend}, {len(report.figures)} comparisons, {report.seconds:.1f} s")


def _worst(figures: Sequence[Figures]) -> list[tuple[str, ...]]:
    """A row per stage: how often it was compared, and the worst of it."""
    rows: list[tuple[str, ...]] = []
    for stage in dict.fromkeys(one.stage for one in figures):
        own = [one for one in figures if one.stage == stage]
        largest, relative = max(one.max_abs for one in own), max(one.relative for one in own)
        cosine = min(one.cosine for one in own)
        rows.append((stage, str(len(own)), f"{largest:.2e}", f"{relative:.2e}", f"{cosine:.8f}"))
    return rows
