"""`vlm-trt generate`: one prompt, one answer."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from bundle.errors import PromptError
from commands.terminal import printable, say
from models.images import decode_image, read_picture
from models.messages import Image, Message, Part, Text
from runtime.model import Answer, Options, VisionLanguageModel, load


def run(
    bundle: Path, prompt: str, images: Sequence[Path], draw: Path | None, as_json: bool, system: str | None, **rest: Any
) -> None:
    text = sys.stdin.read() if prompt == "-" else prompt
    parts: list[Part] = [*read_images(images), Text(text)]
    if draw is not None and not images:
        raise PromptError("--draw needs a picture to draw on; give one with --image")
    model, options = load_with(bundle, **rest)
    messages = [Message("user", tuple(parts))]
    if system is not None:
        messages.insert(0, Message("system", (Text(system),)))
    if as_json:
        answer = model.generate(messages, options=options)
        click.echo(json.dumps(as_document(answer, model), ensure_ascii=False))
    else:
        answer = show(model, messages, options)
        show_groundings(answer)
    if draw is not None:
        write_drawing(answer, parts, draw)


def load_with(
    bundle: Path, precision: str | None, backend: str, threads: int | None, unverified: bool, **sampling: Any
) -> tuple[VisionLanguageModel, Options]:
    """The model and the options that `generate` and `chat` share."""
    model = load(bundle, precision=precision, backend=backend, threads=threads, allow_unverified=unverified)
    if unverified:
        say(f"warning: {model.engine.precision} graphs are used without being verified")
    return model, Options(**sampling)


def read_images(paths: Sequence[Path]) -> list[Image]:
    """
    Raises:
        ImageError: a file cannot be read.
    """
    return [Image(read_picture(path), path.name) for path in paths]


def show(model: VisionLanguageModel, messages: Sequence[Message], options: Options) -> Answer:
    """Prints the answer as it comes."""
    for piece in model.stream(messages, options=options):
        if isinstance(piece, Answer):
            click.echo()
            return piece
        click.echo(printable(piece), nl=False)
    raise AssertionError("a stream ends with its answer")


def show_groundings(answer: Answer) -> None:
    if answer.dropped_turns:
        say(f"{answer.dropped_turns} oldest turns were left out: the window is full")
    for one in answer.groundings:
        points = " ".join(f"({x:.0f},{y:.0f})" for x, y in one.points)
        click.echo(f"  {printable(one.name) or one.kind}: {one.kind} {points} px in picture {one.picture + 1}")


def write_drawing(answer: Answer, parts: Sequence[Part], target: Path) -> None:
    pictures = [part for part in parts if isinstance(part, Image)]
    places = [one for one in answer.groundings if one.picture == len(pictures) - 1]
    if not places:
        say(f"the answer names no place, so {target} is the picture as it was")
    picture = decode_image(pictures[-1].data, pictures[-1].name)
    from runtime.drawing import draw_regions

    draw_regions(picture, places).save(target)
    say(f"wrote {target}")


def as_document(answer: Answer, model: VisionLanguageModel) -> dict[str, Any]:
    """What `--json` prints."""
    decode = answer.decode_step_ms
    return {
        "text": answer.text,
        "plain_text": answer.plain_text,
        "boxes": [asdict(one) for one in answer.groundings],
        "finish_reason": answer.finish_reason,
        "prompt_ids": list(answer.prompt_ids),
        "generated_ids": list(answer.ids),
        "prompt_tokens": len(answer.prompt_ids),
        "reused_tokens": answer.reused_tokens,
        "dropped_turns": answer.dropped_turns,
        "backend": model.engine.backend.name,
        "precision": model.engine.precision.value,
        "stages_ms": {"load": model.load_ms, **answer.stages_ms},
        "decode_ms_per_token": sum(decode) / len(decode) if decode else None,
    }
