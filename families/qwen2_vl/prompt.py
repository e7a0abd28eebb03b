"""Messages → token ids, as Qwen2-VL's published chat template and processor have it: ChatML.

`<|im_start|>user`, a line break, the parts, `<|im_end|>`, a line break; a picture is `<|vision_start|>`, a token for
each of its squares of patches, `<|vision_end|>`. What stands between two control tokens, of template and user, is
encoded together. A video is the same with a token of its own, its frames joined as the tower joins them.
"""

import re
from collections.abc import Iterator, Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.families.clips import Clip
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import Image, Message, Prompt, Region, Text
from vlm_trt.families.prompting import Piece, Placed, Room, encoded, exact_ids, fitted, joined_texts, text_alone
from vlm_trt.families.qwen2_vl.frames import tiles_of, time_step
from vlm_trt.families.qwen2_vl.pictures import grid_of
from vlm_trt.families.tokenizer_json import JsonTokenizer

PLACEHOLDER, VIDEO_PLACEHOLDER = "<|image_pad|>", "<|video_pad|>"
BEGINNING, END = "<|im_start|>", "<|im_end|>"
PICTURE_START, PICTURE_END = "<|vision_start|>", "<|vision_end|>"
DEFAULT_SYSTEM = "You are a helpful assistant."
# What answers name places with.
PLACE_TAGS = tuple(f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad") for end in ("start", "end"))
_LEAST_PICTURE_TOKENS = 3  # one, and those around it


def build_prompt(messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of a conversation. What an assistant said keeps the tags of places, and nothing else, as tokens.

    Args:
        messages: an optional system message, then turns, the last one the user's. Of pictures, the size is read.
        tokenizer: of the checkpoint.
        model: how large its pictures are, and its history window.
        max_tokens: positions the prompt may have.
    Returns:
        As much of the conversation as fits, the oldest turns left out.
    Raises:
        PromptError: the messages are no conversation, the last turn does not fit, or a picture is to be looked at
            beyond the model's bounds.
        ImageError: a picture is none, or far longer than wide.
    Source: the chat template of Qwen/Qwen2-VL-2B-Instruct and Qwen2VLProcessor.
    """
    return conversation(messages, tokenizer, model, max_tokens, PLACE_TAGS)


def continue_text(text: str, tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """A text to be continued; nothing is put in front of it.

    Raises:
        PromptError: it does not fit.
    """
    return text_alone(text, (), tokenizer, max_tokens)


def conversation(
    messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int, tags: Sequence[str]
) -> Prompt:
    """As `build_prompt` has it.

    Args:
        messages, tokenizer, model, max_tokens: as there.
        tags: names of tokens that an assistant's text may hold.
    """
    room = Room(max_tokens, tokenizer.longest_token, _LEAST_PICTURE_TOKENS)

    def piece(kept: Sequence[Message]) -> Piece:
        system = [] if kept[0].role == "system" else [Message("system", DEFAULT_SYSTEM)]
        written = [one for message in (*system, *kept) for one in _written(message, tokenizer, model, tags)]
        return encoded([*written, _control(BEGINNING, tokenizer), "assistant\n"], tokenizer)

    return fitted(messages, room, model.generation.max_window_tokens, piece)


def _written(
    message: Message, tokenizer: JsonTokenizer, model: ModelConfig, tags: Sequence[str]
) -> Iterator[str | Piece]:
    """A message: texts, which are to be encoded together with those beside them, and what is ids already."""
    yield _control(BEGINNING, tokenizer)
    yield f"{message.role}\n"
    if (ids := exact_ids(message)) is not None:
        yield Piece(ids)
    else:
        for part in joined_texts(message.parts):
            match part:
                case Image() | Clip():
                    yield _shown(part, tokenizer, model)
                case Region():
                    yield from _region(part, tokenizer)
                case Text():
                    yield from _tagged(part.text, tokenizer, tags if message.role == "assistant" else ())
    yield _control(END, tokenizer)
    yield "\n"


def _shown(part: Image | Clip, tokenizer: JsonTokenizer, model: ModelConfig) -> Piece:
    """A picture's or video's tokens, which have a time, a row and a column, and those around them."""
    tower, times, step, placeholder = model.any_size, 1, 1.0, PLACEHOLDER
    if isinstance(part, Clip):
        assert isinstance(model.pictures, AnySize)
        times, step, placeholder = len(tiles_of(part, tower)), time_step(part, model.pictures, tower), VIDEO_PLACEHOLDER
        grid = part.size[1] // tower.patch_size, part.size[0] // tower.patch_size
    else:
        rule = looking(model, part.look).pictures
        assert isinstance(rule, AnySize)
        grid = grid_of(part.size, rule, tower)
    rows, columns = (count // tower.token_side for count in grid)
    tokens = (tokenizer.id_of(placeholder),) * (times * rows * columns)
    ids = (tokenizer.id_of(PICTURE_START), *tokens, tokenizer.id_of(PICTURE_END))
    return Piece(ids, (Placed(part, ((1, 1 + len(tokens)),), (times, rows, columns), step),))


def _region(region: Region, tokenizer: JsonTokenizer) -> Iterator[str | Piece]:
    """`<|object_ref_start|>name<|object_ref_end|>` and its boxes and quads, the tags as tokens, the name as text."""

    def tagged(kind: str, text: str) -> Iterator[str | Piece]:
        yield _control(f"<|{kind}_start|>", tokenizer)
        yield text
        yield _control(f"<|{kind}_end|>", tokenizer)

    if region.name:
        yield from tagged("object_ref", region.name)
    for kind, shapes in (("box", region.boxes), ("quad", region.quads)):
        for shape in shapes:
            yield from tagged(kind, ",".join(f"({x},{y})" for x, y in shape))


def _tagged(text: str, tokenizer: JsonTokenizer, tags: Sequence[str]) -> Iterator[str | Piece]:
    """A text, the tags in it as tokens."""
    if not tags:
        yield text
        return
    for one in re.split(f"({'|'.join(map(re.escape, tags))})", text):
        yield _control(one, tokenizer) if one in tags else one


def _control(name: str, tokenizer: JsonTokenizer) -> Piece:
    return Piece((tokenizer.id_of(name),))
