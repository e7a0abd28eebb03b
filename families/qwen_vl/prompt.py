"""Messages → token ids: ChatML for Qwen-VL-Chat, the plain text for the base model.

Text a user typed is encoded with special tokens off. Pictures are parts beside it: each becomes a labelled span whose
positions the image features fill. What an assistant said keeps its grounding tags, and nothing else, as tokens.
"""

from collections.abc import Sequence

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, Message, Prompt, Region, Text
from vlm_trt.families.prompting import Piece, Room, exact_ids, pictures_of, split_conversation, text_alone
from vlm_trt.families.qwen_vl.tokenizer import Special, Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
# Source: the published list format; the base model's own examples have a blank before the picture.
_CHAT_LABEL = "Picture {}:"
_RAW_LABEL = "Picture {}: "


def build_prompt(messages: Sequence[Message], tokenizer: Tokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """The prompt of a conversation in the checkpoint's own format.

    Args:
        messages: an optional system message, then turns, the last one the user's.
        tokenizer: of the checkpoint.
        model: its format and history window.
        max_tokens: positions the prompt may have.
    Raises:
        PromptError: the messages are no conversation, or the last turn does not fit.
    """
    picture_tokens = model.tile_tokens + 2  # with the tags around them
    room = Room(max_tokens, tokenizer.longest_token, picture_tokens)
    if model.generation.chat_format == "raw":
        piece, dropped_turns = _raw(messages, tokenizer, room), 0
    else:
        piece, dropped_turns = _chat(messages, tokenizer, room, model.generation.max_window_tokens)
    return piece.prompt(dropped_turns=dropped_turns)


def continue_text(text: str, tokenizer: Tokenizer, model: ModelConfig, max_tokens: int) -> Prompt:
    """A text to be continued.

    Raises:
        PromptError: it does not fit.
    """
    return text_alone(text, (), tokenizer, max_tokens)


def _raw(messages: Sequence[Message], tokenizer: Tokenizer, room: Room) -> Piece:
    if len(messages) != 1 or messages[0].role != "user":
        raise PromptError("the base model continues one text; give one user message, or use the chat checkpoint")
    room.require_possible(messages)
    piece = _content(messages[0], tokenizer, _RAW_LABEL, first_picture=1)
    room.require_fit(piece)
    return piece


def _chat(messages: Sequence[Message], tokenizer: Tokenizer, room: Room, window: int) -> tuple[Piece, int]:
    """The prompt, and how many of the oldest turns were left out."""
    given, turns, query = split_conversation(messages)
    system = given or Message("system", DEFAULT_SYSTEM)
    room.require_possible((system, query))
    newline = Piece(tuple(tokenizer.encode("\n")))
    opening = _block(system, tokenizer, 1)
    pictures = pictures_of(system) + sum(pictures_of(message) for turn in turns for message in turn)
    closing = newline + _block(query, tokenizer, pictures + 1) + newline
    closing += Piece((tokenizer.im_start, *tokenizer.encode("assistant"))) + newline
    room.require_fit(opening + closing)
    # The query does not count against the window, as in the original; the cache's length bounds everything.
    # From the newest turn on, so that what is dropped is not encoded.
    kept, keep = Piece(), 0
    for turn in reversed(turns):
        if sum(map(room.least_tokens, turn)) > room.max_tokens:
            break
        pictures -= sum(map(pictures_of, turn))
        piece, picture = Piece(), pictures + 1
        for message in turn:
            piece += newline + _block(message, tokenizer, picture)
            picture += pictures_of(message)
        context = len(opening.ids) + len(piece.ids) + len(kept.ids)
        if context >= window or context + len(closing.ids) > room.max_tokens:
            break
        kept, keep = piece + kept, keep + 1
    return opening + kept + closing, len(turns) - keep


def _block(message: Message, tokenizer: Tokenizer, first_picture: int) -> Piece:
    """`<|im_start|>role`, a new line, the content, `<|im_end|>`."""
    head = Piece((tokenizer.im_start, *tokenizer.encode(message.role), *tokenizer.encode("\n")))
    return head + _content(message, tokenizer, _CHAT_LABEL, first_picture) + Piece((tokenizer.im_end,))


def _content(message: Message, tokenizer: Tokenizer, label: str, first_picture: int) -> Piece:
    """A message's parts; neighbouring texts are joined before they are encoded, as the original encodes them."""
    if (ids := exact_ids(message)) is not None:
        return Piece(ids)
    special: Special = "grounding" if message.role == "assistant" else "none"
    piece, text, picture = Piece(), "", first_picture
    for part in message.parts:
        match part:
            case Text():
                text += part.text
            case Image():
                piece += _encoded(text + label.format(picture), tokenizer, special) + _picture(part, tokenizer)
                text, picture = "\n", picture + 1
            case Region():
                piece += _encoded(text, tokenizer, special) + _region(part, tokenizer)
                text = ""
    return piece + _encoded(text, tokenizer, special)


def _encoded(text: str, tokenizer: Tokenizer, special: Special) -> Piece:
    return Piece(tuple(tokenizer.encode(text, special)))


def _picture(image: Image, tokenizer: Tokenizer) -> Piece:
    """The span that the features fill. The name's bytes stand in it as in the original, if they fit; the model never
    sees them."""
    name = image.name.encode("utf-8", "replace")
    span = tokenizer.image_span(name if len(name) <= tokenizer.image_tokens else b"")
    return Piece.picture(image, span, (tokenizer.image_start,), (tokenizer.image_end,))


def _region(region: Region, tokenizer: Tokenizer) -> Piece:
    """`<ref>name</ref>` and its boxes and quads, the tags as tokens, the name as plain text."""

    def tagged(tag: str, text: str) -> Piece:
        opening, closing = tokenizer.special[f"<{tag}>"], tokenizer.special[f"</{tag}>"]
        return Piece((opening, *tokenizer.encode(text), closing))

    def points(shape: Sequence[tuple[int, int]]) -> str:
        return ",".join(f"({x},{y})" for x, y in shape)

    piece = tagged("ref", region.name) if region.name else Piece()
    for box in region.boxes:
        piece += tagged("box", points(box))
    for quad in region.quads:
        piece += tagged("quad", points(quad))
    return piece
