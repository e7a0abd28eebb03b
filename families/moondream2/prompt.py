"""A question, a caption or a thing to find → token ids: the beginning, the picture, the ids of the template.

The beginning and the picture attend to each other in both directions, and are kept as the beginning of other prompts.
"""

from collections.abc import Sequence

from vlm_trt.bundle.config import ModelConfig, Templates
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, Message, PlaceKind, Prompt, Region, Text
from vlm_trt.families.prompting import Piece, Room, exact_ids, text_alone
from vlm_trt.families.tokenizer_json import JsonTokenizer

CAPTION, DETECT, POINT = "caption:", "detect:", "point:"
_LENGTHS = ("short", "normal", "long")


def build_prompt(messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of one task.

    Args:
        messages: one user message with a picture or none. Its text is a question; or `caption: short`, `caption:
            normal`, `caption: long`; or `detect: …`, `point: …`. A picture alone asks for a caption.
        tokenizer: of the checkpoint.
        model: its templates and its tokens per picture.
        max_tokens: positions the prompt may have.
    Raises:
        PromptError: more than one message or picture, a region, a task without a picture, or it does not fit.
    Source: moondream.py of vikhyat/moondream; there typed control tokens would count as such.
    """
    if len(messages) != 1 or messages[0].role != "user":
        raise PromptError("Moondream answers one question and holds no conversation; give one user message")
    message, templates = messages[0], model.templates
    assert templates is not None
    exact_ids(message)
    room = Room(max_tokens, tokenizer.longest_token, model.tile_tokens)
    room.require_possible(messages)
    pictures = [part for part in message.parts if isinstance(part, Image)]
    if len(pictures) > 1 or any(isinstance(part, Region) for part in message.parts):
        raise PromptError("Moondream looks at one picture, and takes no regions; ask about each picture by itself")
    text = "".join(part.text for part in message.parts if isinstance(part, Text))
    ids, places = _asked(text, templates, tokenizer, seen=bool(pictures))
    beginning = (templates.beginning,)
    piece = Piece(beginning)
    if pictures:
        piece = Piece.picture(pictures[0], beginning * model.tile_tokens, beginning)
    prefix = len(piece.ids) if pictures else 0
    piece += Piece(ids)
    room.require_fit(piece)
    return piece.prompt(prefix=prefix, places=places)


def continue_text(text: str, tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """A text to be continued behind the beginning that every text of the model has.

    Raises:
        PromptError: it does not fit.
    """
    assert model.templates is not None
    return text_alone(text, (model.templates.beginning,), tokenizer, max_tokens)


def _asked(
    text: str, templates: Templates, tokenizer: JsonTokenizer, *, seen: bool
) -> tuple[tuple[int, ...], PlaceKind | None]:
    """The ids behind the picture, and what kind of places is asked for."""
    task = next((one for one in (CAPTION, DETECT, POINT) if text.startswith(one)), CAPTION if not text else None)
    if task is not None and not seen:
        raise PromptError(f"{task.rstrip(':')!r} needs a picture; give one, or ask a question")
    what = "" if task is None else text.removeprefix(task).strip()
    match task:
        case "caption:":
            return _caption(what or "normal", templates), None
        case "detect:" | "point:":
            if not what:
                raise PromptError(f"{task!r} names nothing to find; write it behind")
            before, behind = templates.detect if task == DETECT else templates.point
            kind = PlaceKind.BOX if task == DETECT else PlaceKind.POINT
            return (*before, *tokenizer.encode(f" {what}"), *behind), kind
    before, behind = templates.query
    return (*before, *tokenizer.encode(text), *behind), None


def _caption(length: str, templates: Templates) -> tuple[int, ...]:
    known = dict(zip(_LENGTHS, (templates.short_caption, templates.caption, templates.long_caption), strict=True))
    found = known.get(length, ())
    if not found:
        raise PromptError(
            f"a caption of length {length!r} is not what this model was taught; ask for "
            f"{' or '.join(name for name, ids in known.items() if ids)}"
        )
    return found
