"""Messages → token ids: ChatML for Qwen-VL-Chat, the plain text for the base model.

Text a user typed is encoded with special tokens off. Pictures are parts beside it: each becomes a labelled span whose
positions the image features fill. What an assistant said keeps its grounding tags, and nothing else, as tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bundle.config import ModelConfig
from bundle.errors import PromptError
from models.messages import Image, ImageSpan, Message, Prompt, Region, Text
from models.qwen_vl.tokenizer import Special, Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
# Source: the published list format; the base model's own examples have a blank before the picture.
_CHAT_LABEL = "Picture {}:"
_RAW_LABEL = "Picture {}: "


@dataclass(frozen=True)
class _Piece:
    """Some of the prompt: ids, and the pictures at positions relative to its start."""

    ids: tuple[int, ...] = ()
    images: tuple[tuple[int, Image], ...] = ()  # first position of the span, picture

    def __add__(self, other: "_Piece") -> "_Piece":
        moved = tuple((at + len(self.ids), image) for at, image in other.images)
        return _Piece(self.ids + other.ids, self.images + moved)


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
    characters = sum(len(part.text) for message in messages for part in message.parts if isinstance(part, Text))
    if characters > 4 * tokenizer.longest_token * max_tokens and len(messages) == 1:
        raise PromptError(f"{characters:,} characters cannot fit {max_tokens} positions; shorten the text")
    if model.generation.chat_format == "raw":
        return _raw(messages, tokenizer, max_tokens)
    return _chat(messages, tokenizer, model.generation.max_window_tokens, max_tokens)


def _raw(messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int) -> Prompt:
    if len(messages) != 1 or messages[0].role != "user":
        raise PromptError("the base model continues one text; give one user message, or use the chat checkpoint")
    piece = _content(messages[0], tokenizer, _RAW_LABEL, first_picture=1)
    _require_fit(piece, max_tokens)
    return _prompt(piece, tokenizer, dropped_turns=0)


def _chat(messages: Sequence[Message], tokenizer: Tokenizer, window: int, max_tokens: int) -> Prompt:
    system, turns, query = _split(messages)
    newline = _Piece(tuple(tokenizer.encode("\n")))
    start, end = _Piece((tokenizer.im_start,)), _Piece((tokenizer.im_end,))
    pictures = 1

    def block(message: Message) -> _Piece:
        nonlocal pictures
        head = start + _Piece(tuple(tokenizer.encode(message.role))) + newline
        body = head + _content(message, tokenizer, _CHAT_LABEL, pictures) + end
        pictures += sum(isinstance(part, Image) for part in message.parts)
        return body

    opening = block(system)
    history = [sum((newline + block(message) for message in turn), _Piece()) for turn in turns]
    closing = newline + block(query) + newline + start + _Piece(tuple(tokenizer.encode("assistant"))) + newline
    _require_fit(opening + closing, max_tokens)
    # The query does not count against the window, as in the original; the cache's length bounds everything.
    kept = _Piece()
    keep = 0
    for turn in reversed(history):
        context = len(opening.ids) + len(turn.ids) + len(kept.ids)
        if context >= window or context + len(closing.ids) > max_tokens:
            break
        kept, keep = turn + kept, keep + 1
    return _prompt(opening + kept + closing, tokenizer, dropped_turns=len(history) - keep)


def _split(messages: Sequence[Message]) -> tuple[Message, list[list[Message]], Message]:
    """System message, earlier turns (each from a user's message on), the last user's message."""
    rest = list(messages)
    system = Message("system", (Text(DEFAULT_SYSTEM),))
    if rest and rest[0].role == "system":
        system = rest.pop(0)
    if not rest or rest[-1].role != "user":
        raise PromptError("a conversation ends with the user's message; add one")
    query = rest.pop()
    turns: list[list[Message]] = []
    for message in rest:
        if message.role not in ("user", "assistant"):
            raise PromptError(f"role {message.role!r} may not stand inside a conversation; use user and assistant")
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns, query


def _content(message: Message, tokenizer: Tokenizer, label: str, first_picture: int) -> _Piece:
    """A message's parts; neighbouring texts are joined before they are encoded, as the original encodes them."""
    if message.ids is not None:
        return _Piece(message.ids)
    special: Special = "grounding" if message.role == "assistant" else "none"
    piece, text, picture = _Piece(), "", first_picture
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


def _encoded(text: str, tokenizer: Tokenizer, special: Special) -> _Piece:
    return _Piece(tuple(tokenizer.encode(text, special)))


def _picture(image: Image, tokenizer: Tokenizer) -> _Piece:
    """The span that the features fill. The name's bytes stand in it as in the original, if they fit; the model never
    sees them."""
    name = image.name.encode("utf-8", "replace")
    span = tokenizer.image_span(name if len(name) <= tokenizer.image_tokens else b"")
    return _Piece((tokenizer.image_start, *span, tokenizer.image_end), ((1, image),))


def _region(region: Region, tokenizer: Tokenizer) -> _Piece:
    """`<ref>name</ref>` and its boxes and quads, the tags as tokens, the name as plain text."""

    def tagged(tag: str, text: str) -> _Piece:
        opening, closing = tokenizer.special[f"<{tag}>"], tokenizer.special[f"</{tag}>"]
        return _Piece((opening, *tokenizer.encode(text), closing))

    def points(shape: Sequence[tuple[int, int]]) -> str:
        return ",".join(f"({x},{y})" for x, y in shape)

    piece = tagged("ref", region.name) if region.name else _Piece()
    for box in region.boxes:
        piece += tagged("box", points(box))
    for quad in region.quads:
        piece += tagged("quad", points(quad))
    return piece


def _require_fit(piece: _Piece, max_tokens: int) -> None:
    if len(piece.ids) > max_tokens:
        pictures = f", {len(piece.images)} pictures among them" if piece.images else ""
        raise PromptError(
            f"the prompt has {len(piece.ids)} tokens{pictures}, and the bundle holds {max_tokens} positions; "
            "shorten it, send fewer pictures, or export with a larger --max-seq-tokens"
        )


def _prompt(piece: _Piece, tokenizer: Tokenizer, dropped_turns: int) -> Prompt:
    spans = tuple(ImageSpan(at, at + tokenizer.image_tokens, i) for i, (at, _) in enumerate(piece.images))
    return Prompt(piece.ids, spans, tuple(image for _, image in piece.images), dropped_turns)
