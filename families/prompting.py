"""What prompts of all families share: pieces with pictures in them, a conversation's turns, and whether it fits."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.clips import Clip, Frames, Video
from vlm_trt.families.messages import Image, ImageSpan, Message, Part, PlaceKind, Prompt, Region, Shown, Text

Stretch = tuple[int, int]  # first position, and the one behind the last


@dataclass(frozen=True)
class Placed:
    """A picture in a piece, at positions relative to its start."""

    image: Shown
    stretches: tuple[Stretch, ...]  # one for each of its tiles, or one for all
    grid: tuple[int, int, int] | None = None  # as ImageSpan has it
    time_step: float = 1.0


@dataclass(frozen=True)
class Piece:
    """Some of a prompt: ids, and the pictures among them."""

    ids: tuple[int, ...] = ()
    images: tuple[Placed, ...] = ()

    def __add__(self, other: "Piece") -> "Piece":
        by = len(self.ids)
        moved = (replace(one, stretches=tuple((a + by, b + by) for a, b in one.stretches)) for one in other.images)
        return Piece(self.ids + other.ids, (*self.images, *moved))

    @classmethod
    def picture(cls, image: Image, ids: Sequence[int], before: Sequence[int] = (), behind: Sequence[int] = ()) -> Self:
        """A picture whose features stand in one stretch, and what is written around it."""
        start = len(before)
        return cls((*before, *ids, *behind), (Placed(image, ((start, start + len(ids)),)),))

    def prompt(self, *, dropped_turns: int = 0, prefix: int = 0, places: PlaceKind | None = None) -> Prompt:
        """The whole of a prompt.

        Args:
            dropped_turns: turns left out of it.
            prefix: positions that attend to each other in both directions.
            places: what is answered with instead of words.
        """
        spans = tuple(
            ImageSpan(*stretch, i, one.grid, one.time_step)
            for i, one in enumerate(self.images)
            for stretch in one.stretches
        )
        return Prompt(self.ids, spans, tuple(one.image for one in self.images), dropped_turns, prefix, places)


@dataclass(frozen=True)
class Room:
    """How much a prompt may hold."""

    max_tokens: int  # positions
    longest_token: int  # characters, or bytes, that one token stands for at most
    picture_tokens: int  # all that are written for a picture, at least

    def least_tokens(self, message: Message) -> int:
        """Tokens that a message has at least, without encoding it.

        Normalisation makes one character of at most four.
        """
        if message.ids is not None:
            return len(message.ids)
        characters, least = 0, pictures_of(message) * self.picture_tokens
        for part in message.parts:
            if isinstance(part, Text):
                characters += len(part.text)
            elif isinstance(part, Region):
                characters += len(part.name)
                least += len(part.boxes) + len(part.quads)
        return least + characters // (4 * self.longest_token)

    def require_possible(self, messages: Sequence[Message]) -> None:
        """Refuses at once what is too large by far, so that no time goes into encoding it.

        Raises:
            PromptError: it has more tokens than there may be.
        """
        least = sum(map(self.least_tokens, messages))
        if least > self.max_tokens:
            clips = sum(isinstance(part, Clip) for message in messages for part in message.parts)
            raise self._too_long(f"at least {least}", sum(map(pictures_of, messages)) - clips, clips)

    def require_fit(self, piece: Piece) -> None:
        """
        Raises:
            PromptError: it has more tokens than there may be.
        """
        if len(piece.ids) > self.max_tokens:
            clips = sum(isinstance(one.image, Clip) for one in piece.images)
            raise self._too_long(str(len(piece.ids)), len(piece.images) - clips, clips)

    def _too_long(self, tokens: str, pictures: int, clips: int) -> PromptError:
        counts = ((pictures, "picture"), (clips, "video"))
        shown = " and ".join(f"{count} {what}{'s' * (count > 1)}" for count, what in counts if count)
        among = f", {shown} among them" if shown else ""
        fewer = "fewer pictures" if not clips else "fewer pictures or a shorter video, or fewer of its frames"
        return PromptError(
            f"the prompt has {tokens} tokens{among}, and the bundle holds {self.max_tokens} positions; "
            f"shorten it, send {fewer}, or export with a larger --max-seq-tokens"
        )


class Encoder(Protocol):
    """Of a tokenizer, what plain text needs."""

    longest_token: int

    def encode(self, text: str) -> list[int]: ...


class LaterEncoder(Protocol):
    """Of a tokenizer, what text between control tokens needs."""

    def encode(self, text: str, *, later: bool = False) -> list[int]: ...


def encoded(written: Sequence[str | Piece], tokenizer: LaterEncoder) -> Piece:
    """The ids of texts and of what is ids already; neighbouring texts are encoded as one."""
    piece, text = Piece(), ""
    for one in (*written, Piece()):  # at last nothing, so that the last text is encoded
        if isinstance(one, str):
            text += one
            continue
        if text:
            piece += Piece(tuple(tokenizer.encode(text, later=True)))
        piece += one
        text = ""
    return piece


def text_alone(text: str, beginning: Sequence[int], tokenizer: Encoder, max_tokens: int) -> Prompt:
    """A text as it is, to be continued, behind the ids that every text of the model begins with.

    Raises:
        PromptError: it does not fit.
    """
    room = Room(max_tokens, tokenizer.longest_token, 0)
    room.require_possible([Message("user", text)])
    piece = Piece((*beginning, *tokenizer.encode(text)))
    room.require_fit(piece)
    return piece.prompt()


def pictures_of(message: Message) -> int:
    """How many pictures and videos a message shows.

    Raises:
        PromptError: a video is not a clip yet, so that a prompt would leave it out.
    """
    if any(isinstance(part, Video | Frames) for part in message.parts):
        raise PromptError("the frames of a video are not chosen yet; make the prompt with `model.build_prompt`")
    return sum(isinstance(part, Image | Clip) for part in message.parts)


Turn = list[Message]


def split_conversation(messages: Sequence[Message]) -> tuple[Message | None, list[Turn], Message]:
    """System message, earlier turns (each from a user's message on), the last user's message.

    Raises:
        PromptError: the last message is not the user's, or a system message is not the first.
    """
    rest = list(messages)
    system = rest.pop(0) if rest and rest[0].role == "system" else None
    if not rest or rest[-1].role != "user":
        raise PromptError("a conversation ends with the user's message; add one")
    query = rest.pop()
    turns: list[Turn] = []
    for message in rest:
        if message.role not in ("user", "assistant"):
            raise PromptError(f"role {message.role!r} may not stand inside a conversation; use user and assistant")
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns, query


def fitted(
    messages: Sequence[Message], room: Room, window: int, written: Callable[[Sequence[Message]], Piece]
) -> Prompt:
    """The prompt of as much of a conversation as fits, the oldest turns left out.

    Args:
        messages: an optional system message, then turns, the last one the user's.
        room: how much there is.
        window: so many tokens may there be where turns can be left out.
        written: messages as the model's format has them, all of them together.
    Raises:
        PromptError: the messages are no conversation, or the last turn does not fit.
    """
    system, turns, query = split_conversation(messages)
    head = [] if system is None else [system]
    room.require_possible([*head, query])

    def piece(keep: int) -> Piece:
        return written([*head, *(message for turn in turns[len(turns) - keep :] for message in turn), query])

    room.require_fit(piece(0))
    least, possible = 0, 0
    for turn in reversed(turns):
        least += sum(1 + room.least_tokens(message) for message in turn)  # 1: the role
        if least > room.max_tokens:
            break
        possible += 1
    longest = min(room.max_tokens, window)
    keep = _most(possible, lambda keep: len(piece(keep).ids) <= longest)
    return piece(keep).prompt(dropped_turns=len(turns) - keep)


def _most(possible: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `possible` that fits; from small ones on, as large ones take longer to try."""
    low, high = 0, 1
    while high <= possible and fits(high):
        low, high = high, 2 * high
    between = range(low + 1, min(high, possible + 1))
    return low + bisect_left(between, True, key=lambda number: not fits(number))


def exact_ids(message: Message) -> tuple[int, ...] | None:
    """The ids that a message was generated as, where it carries them.

    Raises:
        PromptError: it carries ids and is not an assistant's.
    """
    if message.ids is not None and message.role != "assistant":
        raise PromptError(f"exact ids stand on a message of role {message.role!r}; give them to assistants' only")
    return message.ids


def joined_texts(parts: Sequence[Part]) -> list[Part]:
    """The parts, neighbouring texts made one."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, Text) and joined and isinstance(before := joined[-1], Text):
            joined[-1] = Text(before.text + part.text)
        else:
            joined.append(part)
    return joined
