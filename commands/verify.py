"""`vlm-trt verify`: the verdict as a table, and its exit code."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from bundle.errors import VerificationError
from commands.terminal import say, table
from verification.verify import verify


def run(bundle: Path, against: Path | None, precision: str | None, backend: str, as_json: bool) -> None:
    report = verify(bundle, against, precision, backend, progress=lambda what: say(f"  {what} ..."))
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        rows = [(one.check, f"{one.max_abs:.2e}", f"{one.relative:.2e}", f"{one.cosine:.8f}") for one in report.figures]
        click.echo(table(rows, ("check", " max abs", " relative", " cosine")))
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
