"""`vlm-trt export`: progress on stderr, the result in a line."""

from collections.abc import Sequence
from pathlib import Path

from bundle.signature import Component, Precision
from commands.terminal import byte_bar, say, size
from exporter.export import Choices, export


def run(
    checkpoint: Path,
    bundle: Path,
    precision: str,
    max_seq_tokens: int | None,
    max_batch: int | None,
    max_images: int | None,
    components: Sequence[str],
    force: bool,
) -> None:
    choices = Choices(
        precision=Precision(precision),
        components=tuple(component for component in Component if not components or component in components),
        max_seq_tokens=max_seq_tokens,
        max_batch=max_batch,
        max_images=max_images,
        force=force,
    )
    done = export(checkpoint, bundle, choices, say=say, byte_bar=byte_bar)
    say(f"wrote {bundle}: {size(done.written_bytes)} in {done.seconds:.1f} s. Next: vlm-trt verify {bundle}")
