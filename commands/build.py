"""`vlm-trt build`: progress on stderr, the new engines as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.commands.terminal import percent_bar, say, size, table
from vlm_trt.engines.build import Choices, build


def run(path: Path, precision: str | None, components: Sequence[str], target: str, **rest: Any) -> None:
    targets = tuple(name.strip() for name in target.split(",") if name.strip())
    if not targets:
        raise UsageError("--target is empty; give native, or compute capabilities such as sm89,sm120")
    choices = Choices(
        precision=None if precision is None else Precision(precision),
        components=tuple(component for component in Component if not components or component in components),
        targets=targets,
        **rest,
    )
    entries = build(path, choices, say=say, percent_bar=percent_bar)
    click.echo(
        table([_row(entry) for entry in entries], ("engine", "target", " size", " seconds", " peak RAM", "path"))
    )
    say(
        f"built, not run: no engine is used before it is shown equal to the model; see them with vlm-trt inspect {path}"
    )


def _row(entry: EngineEntry) -> tuple[str, ...]:
    return (
        entry.component.value, entry.target, size(entry.plan.size), f"{entry.seconds:.1f}", size(entry.peak_ram_bytes),
        entry.plan.path,
    )  # fmt: skip
