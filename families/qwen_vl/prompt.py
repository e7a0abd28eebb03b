"""Messages → token ids: ChatML for Qwen-VL-Chat, the plain text for the base model.

Text a user typed is encoded with special tokens off. Pictures are parts beside it: each becomes a labelled span whose
positions the image features fill. What an assistant said keeps its grounding tags, and nothing else, as tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.messages import Image, ImageSpan, Message, Prompt, Region, Text
from vlm_trt.families.qwen_vl.tokenizer import Special, Tokenizer

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
    if model.generation.chat_format == "raw":
        return _raw(messages, tokenizer, max_tokens)
    return _chat(messages, tokenizer, model.generation.max_window_tokens, max_tokens)


def _raw(messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int) -> Prompt:
    if len(messages) != 1 or messages[0].role != "user":
        raise PromptError("the base model continues one text; give one user message, or use the chat checkpoint")
    _require_possible(messages, tokenizer, max_tokens)
    piece = _content(messages[0], tokenizer, _RAW_LABEL, first_picture=1)
    _require_fit(piece, max_tokens)
    return _prompt(piece, tokenizer, dropped_turns=0)


def _chat(messages: Sequence[Message], tokenizer: Tokenizer, window: int, max_tokens: int) -> Prompt:
    system, turns, query = _split(messages)
    _require_possible((system, query), tokenizer, max_tokens)
    newline = _Piece(tuple(tokenizer.encode("\n")))
    opening = _block(system, tokenizer, 1)
    pictures = _pictures(system) + sum(_pictures(message) for turn in turns for message in turn)
    closing = newline + _block(query, tokenizer, pictures + 1) + newline
    closing += _Piece((tokenizer.im_start, *tokenizer.encode("assistant"))) + newline
    _require_fit(opening + closing, max_tokens)
    # The query does not count against the window, as in the original; the cache's length bounds everything.
    # From the newest turn on, so that what is dropped is not encoded.
    kept, keep = _Piece(), 0
    for turn in reversed(turns):
        if sum(_least_tokens(message, tokenizer) for message in turn) > max_tokens:
            break
        pictures -= sum(map(_pictures, turn))
        piece, picture = _Piece(), pictures + 1
        for message in turn:
            piece += newline + _block(message, tokenizer, picture)
            picture += _pictures(message)
        context = len(opening.ids) + len(piece.ids) + len(kept.ids)
        if context >= window or context + len(closing.ids) > max_tokens:
            break
        kept, keep = piece + kept, keep + 1
    return _prompt(opening + kept + closing, tokenizer, dropped_turns=len(turns) - keep)


def _block(message: Message, tokenizer: Tokenizer, first_picture: int) -> _Piece:
    """`<|im_start|>role`, a new line, the content, `<|im_end|>`."""
    head = _Piece((tokenizer.im_start, *tokenizer.encode(message.role), *tokenizer.encode("\n")))
    return head + _content(message, tokenizer, _CHAT_LABEL, first_picture) + _Piece((tokenizer.im_end,))


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
        if message.role != "assistant":
            raise PromptError(f"exact ids stand on a message of role {message.role!r}; give them to assistants' only")
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


def _pictures(message: Message) -> int:
    return sum(isinstance(part, Image) for part in message.parts)


def _least_tokens(message: Message, tokenizer: Tokenizer) -> int:
    """Tokens that a message has at least, without encoding it.

    A token is at most `longest_token` bytes, and normalisation makes one character of at most four.
    """
    if message.ids is not None:
        return len(message.ids)
    characters, least = 0, _pictures(message) * (tokenizer.image_tokens + 2)
    for part in message.parts:
        if isinstance(part, Text):
            characters += len(part.text)
        elif isinstance(part, Region):
            characters += len(part.name)
            least += len(part.boxes) + len(part.quads)
    return least + characters // (4 * tokenizer.longest_token)


def _require_possible(messages: Sequence[Message], tokenizer: Tokenizer, max_tokens: int) -> None:
    """Refuses at once what is too large by far, so that no time goes into encoding it."""
    least = sum(_least_tokens(message, tokenizer) for message in messages)
    if least > max_tokens:
        raise _too_long(f"at least {least}", sum(map(_pictures, messages)), max_tokens)


def _require_fit(piece: _Piece, max_tokens: int) -> None:
    if len(piece.ids) > max_tokens:
        raise _too_long(str(len(piece.ids)), len(piece.images), max_tokens)


def _too_long(tokens: str, pictures: int, max_tokens: int) -> PromptError:
    among = f", {pictures} picture{'s' * (pictures > 1)} among them" if pictures else ""
    return PromptError(
        f"the prompt has {tokens} tokens{among}, and the bundle holds {max_tokens} positions; "
        "shorten it, send fewer pictures, or export with a larger --max-seq-tokens"
    )


def _prompt(piece: _Piece, tokenizer: Tokenizer, dropped_turns: int) -> Prompt:
    spans = tuple(ImageSpan(at, at + tokenizer.image_tokens, i) for i, (at, _) in enumerate(piece.images))
    return Prompt(piece.ids, spans, tuple(image for _, image in piece.images), dropped_turns)
