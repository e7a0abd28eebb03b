"""A task → token ids: the pictures, the beginning of the text, the task, a line break; all one prefix.

Every position of the prompt attends to every other. A task is a word such as `caption en`, `answer en …`, `detect cat`
or `segment cat`, or a question; a fine-tuned checkpoint has its own.
"""

from collections.abc import Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, Message, Point, Prompt, Region, Text
from vlm_trt.families.paligemma.codes import LOCATIONS
from vlm_trt.families.prompting import Piece, Room, exact_ids
from vlm_trt.families.tokenizer_json import JsonTokenizer

BEGINNING = "<bos>"
PLACEHOLDER = "<image>"
_GRID = 1000  # of a Region


def build_prompt(messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of one task.

    Args:
        messages: one user message. Its pictures come first, wherever they stand in it; its texts and regions follow
            one another as they are given, with nothing between them.
        tokenizer: of the checkpoint.
        model: its tokens per picture.
        max_tokens: positions the prompt may have.
    Raises:
        PromptError: more than one message, another role, a quad, or it does not fit.
    Source: transformers' PaliGemmaProcessor: the line break and the text are encoded together.
    """
    if len(messages) != 1 or messages[0].role != "user":
        raise PromptError("PaliGemma answers one task and holds no conversation; give one user message")
    message, tokens = messages[0], model.tile_tokens
    exact_ids(message)
    room = Room(max_tokens, tokenizer.longest_token, tokens)
    room.require_possible(messages)
    text = "".join(_written(part, tokenizer) for part in message.parts if isinstance(part, Text | Region))
    span = (tokenizer.id_of(PLACEHOLDER),) * tokens
    piece = Piece()
    for part in message.parts:
        if isinstance(part, Image):
            piece += Piece.picture(part, span)
    piece += Piece((tokenizer.id_of(BEGINNING), *tokenizer.encode(f"{text}\n", later=True)))
    room.require_fit(piece)
    return piece.prompt(prefix=len(piece.ids))


def continue_text(text: str, tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """A text alone is a task without a picture.

    Raises:
        PromptError: it does not fit.
    """
    return build_prompt([Message("user", text)], tokenizer, model, max_tokens)


def _written(part: Text | Region, tokenizer: JsonTokenizer) -> str:
    """A region as the model itself writes one: y1 x1 y2 x2, then the name; several with semicolons between them."""
    if isinstance(part, Text):
        return part.text
    if part.quads:
        raise PromptError("PaliGemma has no notation for quads; give the region's boxes")
    name = f" {part.name}" if part.name else ""
    return " ; ".join(_location(box, tokenizer) + name for box in part.boxes) or part.name


def _location(box: tuple[Point, Point], tokenizer: JsonTokenizer) -> str:
    (x1, y1), (x2, y2) = box
    if not all(0 <= number <= _GRID for number in (x1, y1, x2, y2)):
        raise PromptError(f"a region's coordinates go from 0 to {_GRID - 1} of the picture, and one of {box} does not")
    names = [f"<loc{min(round(at * LOCATIONS / _GRID), LOCATIONS - 1):04}>" for at in (y1, x1, y2, x2)]
    for name in names:
        tokenizer.id_of(name)  # a vocabulary without it would write letters
    return "".join(names)
