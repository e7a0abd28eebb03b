"""`vlm-trt build`: progress on stderr, the new engines as a table or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.precision import Precision
from vlm_trt.commands.terminal import percent_bar, say, size, table
from vlm_trt.engines.build import Choices, build
from vlm_trt.engines.gpus import capability


def run(
    path: Path, precision: str | None, components: Sequence[str], targets: Sequence[str], as_json: bool, **rest: Any
) -> None:
    choices = Choices(
        precision=None if precision is None else Precision(precision),
        components=tuple(component for component in Component if component in components),
        targets=tuple(dict.fromkeys(capability(target) for target in targets)),
        **rest,
    )
    entries = build(path, choices, say=say, percent_bar=percent_bar)
    if as_json:
        click.echo(json.dumps({"bundle": str(path), "engines": [asdict(entry) for entry in entries]}, indent=2))
    else:
        header = ("engine", "target", " size", " seconds", " peak RAM", "path")
        click.echo(table([_row(entry) for entry in entries], header))
    say(
        f"built, not run: no engine is used before it is shown equal to the model; see them with vlm-trt inspect {path}"
    )


def _row(entry: EngineEntry) -> tuple[str, ...]:
    return (
        entry.component.value, entry.target, size(entry.plan.size), f"{entry.seconds:.1f}", size(entry.peak_ram_bytes),
        entry.plan.path,
    )  # fmt: skip
