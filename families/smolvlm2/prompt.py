"""Messages → token ids, as SmolVLM2's published chat template and processor have it.

`<|im_start|>User: question<end_of_utterance>`, a line break, `Assistant:`; a picture is `<fake_token_around_image>`,
the name of its place, its tokens, for every tile, and a line break behind each row of tiles. A video is a sentence
about it, then each of its frames as one tile behind its time.
"""

from collections.abc import Iterator, Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.picture_rules import Split
from vlm_trt.families.clips import Clip
from vlm_trt.families.messages import Image, Message, Prompt, Region, Text
from vlm_trt.families.prompting import Piece, Placed, Room, encoded, exact_ids, fitted, joined_texts, text_alone
from vlm_trt.families.smolvlm2.frames import clock_time, introduction
from vlm_trt.families.splitting import grid_of
from vlm_trt.families.tokenizer_json import JsonTokenizer

PLACEHOLDER = "<image>"
BEGINNING, END = "<|im_start|>", "<end_of_utterance>"
AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"


def build_prompt(messages: Sequence[Message], tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of a conversation.

    Args:
        messages: an optional system message, then turns, the last one the user's. Of pictures, the size is read.
        tokenizer: of the checkpoint.
        model: its tokens per tile, how pictures are cut, and its history window.
        max_tokens: positions the prompt may have.
    Returns:
        As much of the conversation as fits, the oldest turns left out.
    Raises:
        PromptError: the messages are no conversation, hold a region, or the last turn does not fit.
        ImageError: a picture is none.
    Source: the chat template and SmolVLMProcessor of HuggingFaceTB/SmolVLM2-2.2B-Instruct.
    """
    room = Room(max_tokens, tokenizer.longest_token, model.tile_tokens + 3)

    def piece(kept: Sequence[Message]) -> Piece:
        written = [one for message in kept for one in _written(message, tokenizer, model)]
        return encoded([Piece((tokenizer.id_of(BEGINNING),)), *written, "Assistant:"], tokenizer)

    return fitted(messages, room, model.generation.max_window_tokens, piece)


def continue_text(text: str, tokenizer: JsonTokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """A text to be continued; nothing is put in front of it.

    Raises:
        PromptError: it does not fit.
    """
    return text_alone(text, (), tokenizer, max_tokens)


def _written(message: Message, tokenizer: JsonTokenizer, model: ModelConfig) -> Iterator[str | Piece]:
    """A message: texts, which are to be encoded together with those beside them, and what is ids already."""
    end = Piece((tokenizer.id_of(END),))
    if (ids := exact_ids(message)) is not None:
        yield from (f"{message.role.capitalize()}:", Piece(ids), end, "\n")
        return
    if any(isinstance(part, Region) for part in message.parts):
        raise PromptError("SmolVLM2 has no notation for regions; describe the place in words, or send the part cut out")
    parts = joined_texts(message.parts)
    yield f"{message.role.capitalize()}:{'' if parts and isinstance(parts[0], Image) else ' '}"
    for part in parts:
        if isinstance(part, Image):
            yield _picture(part, tokenizer, model)
        elif isinstance(part, Clip):
            yield from _clip(part, tokenizer, model)
        elif isinstance(part, Text):
            yield part.text
    yield end
    yield "\n"


def _picture(image: Image, tokenizer: JsonTokenizer, model: ModelConfig) -> Piece:
    """A picture's rows of tiles and the whole of it, all of them pieces of one picture."""
    assert isinstance(model.pictures, Split)
    grid = grid_of(image.size, model.pictures, model.square.image_size, image.detail)
    around, tokens = tokenizer.id_of(AROUND), (tokenizer.id_of(PLACEHOLDER),) * model.tile_tokens
    ids: list[int] = []
    stretches = []

    def tile(place: str) -> None:
        ids.extend((around, tokenizer.id_of(place)))
        stretches.append((len(ids), len(ids) + len(tokens)))
        ids.extend(tokens)

    for row in range(grid.rows):
        for column in range(grid.columns):
            tile(f"<row_{row + 1}_col_{column + 1}>")
        last = row + 1 == grid.rows
        ids.extend(tokenizer.encode("\n\n" if last else "\n"))  # behind the last row one more, before the whole
    tile(WHOLE)
    return Piece((*ids, around), (Placed(image, tuple(stretches)),))


def _clip(clip: Clip, tokenizer: JsonTokenizer, model: ModelConfig) -> Iterator[str | Piece]:
    """A video: what is said before its first frame, its frames, each behind its time, as pieces of one, an empty line.

    Source: SmolVLMProcessor, whose template for videos is not the published one, which leaves them out.
    """
    around, tokens = tokenizer.id_of(AROUND), (tokenizer.id_of(PLACEHOLDER),) * model.tile_tokens
    ids: list[int] = []
    stretches = []
    for at, second in enumerate(clip.seconds):
        said = f"\nFrame from {clock_time(second)}:"
        if at:
            ids.extend(tokenizer.encode(said, later=True))
        else:
            yield introduction(clip) + said
        ids.extend((around, tokenizer.id_of(WHOLE)))
        stretches.append((len(ids), len(ids) + len(tokens)))
        ids.extend((*tokens, around))
    yield Piece(tuple(ids), (Placed(clip, tuple(stretches)),))
    yield "\n\n"
