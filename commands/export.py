"""`vlm-trt export`: progress on stderr; the result in a line, or as JSON."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.terminal import byte_bar, say, size
from vlm_trt.exporter.export import Choices, export
from vlm_trt.exporter.hub import checkpoint_folder


def run(
    checkpoint: Path,
    bundle: Path,
    precision: str,
    max_seq_tokens: int | None,
    max_batch: int | None,
    max_images: int | None,
    min_pixels: int | None,
    max_pixels: int | None,
    adapters: Sequence[Path],
    components: Sequence[str],
    force: bool,
    download: bool,
    revision: str | None,
    as_json: bool,
) -> None:
    folder = checkpoint_folder(checkpoint, download=download, revision=revision, say=say)
    choices = Choices(
        precision=Precision(precision),
        components=tuple(component for component in Component if component in components),
        max_seq_tokens=max_seq_tokens,
        max_batch=max_batch,
        max_images=max_images,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        adapters=tuple(adapters),
        force=force,
    )
    done = export(folder, bundle, choices, say=say, byte_bar=byte_bar)
    if as_json:
        made = Bundle.open(bundle)
        wanted = choices.components or made.manifest.model.components
        entries = [made.graph(component, done.precision) for component in wanted]
        written = {"written_bytes": done.written_bytes, "seconds": round(done.seconds, 1)}
        found = {
            "bundle": str(bundle),
            "precision": done.precision,
            **written,
            "graphs": [asdict(one) for one in entries],
        }
        click.echo(json.dumps(found, indent=2))
    say(f"wrote {bundle}: {size(done.written_bytes)} in {done.seconds:.1f} s")
    if done.precision != choices.precision:
        say(f"its matrices have 4 bits already and stay as they are: {done.precision} graphs")
    say(f"Next: {_next(folder, bundle, done.precision, adapters)}")


def _next(checkpoint: Path, bundle: Path, precision: Precision, adapters: Sequence[Path]) -> str:
    """The command that comes next: the graphs of this precision that are still missing, or verification."""
    manifest = Bundle.open(bundle).manifest
    components = manifest.model.components
    missing = [component for component in components if manifest.graph(component, precision) is None]
    if not missing:
        return f"vlm-trt verify {bundle} --precision {precision}"
    rest = [f"--lora {adapter}" for adapter in adapters] + [f"--component {component}" for component in missing]
    return f"vlm-trt export {checkpoint} {bundle} --precision {precision.floating} {' '.join(rest)}"
