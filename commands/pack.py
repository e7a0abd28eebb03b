"""`vlm-trt pack`: progress on stderr, the packed graphs as a table or as JSON."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from vlm_trt.commands.terminal import say, size, table
from vlm_trt.runtime.packing import pack


def run(path: Path, precision: str | None, as_json: bool) -> None:
    packed = pack(path, precision, say)
    if as_json:
        click.echo(json.dumps({"bundle": str(path), "packed": [asdict(one) for one in packed]}, indent=2))
        return
    rows = [(one.component.value, one.precision.value, size(one.weights.size), one.graph.path) for one in packed]
    click.echo(table(rows, ("graph", "precision", " size", "path")))
    say(f"for ONNX Runtime {packed[0].runtime} on {packed[0].processor}; elsewhere the graphs themselves are loaded")
