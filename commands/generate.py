"""`vlm-trt generate`: one prompt, one answer."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.config import within
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.draw import require_drawable, write_drawing
from vlm_trt.commands.shown import read_shown
from vlm_trt.commands.terminal import printable, say, standard_input
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import AS_IT_IS, Detail, Look, Message, Part, Text
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options


def run(
    bundle: Path,
    prompt: str,
    images: Sequence[Path],
    videos: Sequence[Path],
    draw: Path | None,
    as_json: bool,
    quiet: bool,
    system: str | None,
    **rest: Any,
) -> None:
    look, rest = look_of(**rest)
    shown = read_shown(images, videos, look)
    parts: list[Part] = [*shown, Text(_standard_input() if prompt == "-" else prompt)]
    if draw is not None:
        require_drawable(draw, images, parts)
    model, options = load_with(bundle, look, **rest)
    messages = [Message("user", tuple(parts))]
    if system is not None:
        messages.insert(0, Message("system", (Text(system),)))
    if as_json:
        answer = model.generate(messages, options=options)
        click.echo(json.dumps(as_document(answer, model), ensure_ascii=False))
    else:
        answer = show(model, messages, options)
        show_end(answer, model)
        if not quiet:
            say(speed(answer))
    if draw is not None:
        write_drawing(answer, parts, draw)


def look_of(detail: str, min_pixels: int | None, max_pixels: int | None, **rest: Any) -> tuple[Look, dict[str, Any]]:
    """How pictures are looked at, and the other options."""
    return Look(Detail(detail), min_pixels, max_pixels), rest


def load_with(
    bundle: Path,
    look: Look,
    precision: str | None,
    backend: str,
    threads: int | None,
    unverified: bool,
    **sampling: Any,
) -> tuple[VisionLanguageModel, Options]:
    """The model and the options that `generate` and `chat` share; wrong options are refused before it is loaded."""
    options = Options(**sampling)
    if look != AS_IT_IS:
        manifest = Bundle.open(bundle).manifest
        looking(within(manifest.model, manifest.limits), look)
    return loaded(bundle, precision, backend, threads, unverified), options


def loaded(
    bundle: Path, precision: str | None, backend: str, threads: int | None, unverified: bool
) -> VisionLanguageModel:
    """The model; a line says so where nobody has shown its graphs to be right."""
    model = load(bundle, precision=precision, backend=backend, threads=threads, allow_unverified=unverified)
    if unverified:
        say(f"warning: {model.engine.precision} graphs are used without being verified")
    return model


def _standard_input() -> str:
    try:
        return standard_input().buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(f"standard input is no UTF-8 text (byte {error.start}); convert it") from None


def show(model: VisionLanguageModel, messages: Sequence[Message], options: Options) -> Answer:
    """Prints the answer as it comes."""
    with closing(model.stream(messages, options=options)) as pieces:
        for piece in pieces:
            if isinstance(piece, Answer):
                click.echo()
                return piece
            click.echo(printable(piece), nl=False)
    raise AssertionError("a stream ends with its answer")


def show_end(answer: Answer, model: VisionLanguageModel) -> None:
    """The places an answer names, and whatever is missing from it or from its prompt."""
    for one in answer.groundings:
        points = " ".join(f"({x:.0f},{y:.0f})" for x, y in one.points)
        click.echo(f"  {printable(one.name) or one.kind}: {one.kind} {points} px in picture {one.picture + 1}")
    if any(one.mask_codes for one in answer.groundings):
        say("(an outline is 16 codes for a mask decoder, which the checkpoint does not have: they stand in --json)")
    if answer.malformed_places:
        say(f"(places left out, unreadable or without a picture: {answer.malformed_places})")
    if answer.dropped_turns:
        say(f"(turns left out, the oldest first, because the window is full: {answer.dropped_turns})")
    positions = model.engine.limits.max_seq_tokens
    if answer.finish_reason == "length" and len(answer.prompt_ids) + len(answer.ids) > positions:
        say(f"(cut off: all {positions} positions of the bundle are used)")
    elif answer.finish_reason == "length":
        say(f"(cut off after {len(answer.ids)} tokens: --max-new-tokens)")


def speed(answer: Answer) -> str:
    """How long the first token took, and how fast the others came."""
    rate = answer.output_tokens_per_second
    after = "" if rate is None else f", then {rate:.1f} tokens/s"
    tokens = f"{len(answer.ids)} token{'s' * (len(answer.ids) != 1)}"
    return f"({tokens}: the first after {answer.first_token_ms:.0f} ms{after})"


def as_document(answer: Answer, model: VisionLanguageModel) -> dict[str, Any]:
    """What `--json` prints."""
    decode = answer.decode_step_ms
    return {
        "text": answer.text,
        "plain_text": answer.plain_text,
        "boxes": [asdict(one) for one in answer.groundings],
        "malformed_places": answer.malformed_places,
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
        "first_token_ms": answer.first_token_ms,
        "output_tokens_per_second": answer.output_tokens_per_second,
    }
