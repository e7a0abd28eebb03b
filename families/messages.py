"""What a user says to a model: text, pictures, videos and regions as separate parts, never tags inside text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.errors import ImageError, PromptError, UsageError
from vlm_trt.bundle.picture_rules import PIXELS
from vlm_trt.families.clips import Clip, Frames, Video
from vlm_trt.families.images import picture_size

Point = tuple[int, int]


@dataclass(frozen=True)
class Text:
    text: str

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise PromptError(f"a text is a str and not {_kind(self.text)}; convert it")


class Detail(StrEnum):
    """How much of a picture a model that can cut it into tiles looks at; other models see every picture alike."""

    AUTO = "auto"  # as the checkpoint says
    LOW = "low"  # the whole of it, once
    HIGH = "high"  # tiles of it too


@dataclass(frozen=True)
class Look:
    """How a picture is looked at, as far as a request says it; what it leaves open is the bundle's."""

    detail: Detail = Detail.AUTO
    # Of a picture of any size: the smallest and the largest area that it is brought to, within the bundle's bounds.
    min_pixels: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        for name, pixels in (("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels)):
            if pixels is not None and (type(pixels) is not int or pixels not in PIXELS):
                raise PromptError(f"{name} is {pixels!r}; give a whole number of pixels, {PIXELS}")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise PromptError(
                f"min_pixels is {self.min_pixels}, beyond the max_pixels of {self.max_pixels}; give a smaller one"
            )

    @property
    def key(self) -> bytes:
        """Nothing where a request says nothing."""
        return b"" if self == AS_IT_IS else f"{self.detail} {self.min_pixels} {self.max_pixels}".encode()


AS_IT_IS = Look()


@dataclass(frozen=True)
class Image:
    """An encoded picture (PNG, JPEG, …). `name` is written into the prompt's image span and changes no answer."""

    data: bytes = field(repr=False)
    name: str = ""
    detail: Detail = Detail.AUTO
    min_pixels: int | None = None  # as `Look` has them
    max_pixels: int | None = None
    look: Look = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "look", Look(self.detail, self.min_pixels, self.max_pixels))
        if not isinstance(self.data, bytes):
            raise ImageError(
                f"a picture is the bytes of a PNG or JPEG file and not {_kind(self.data)}; read the file, as with "
                "pathlib.Path(…).read_bytes()"
            )

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the encoded picture: what it is known by. Computed once, by whoever first asks."""
        return sha256(self.data).digest()

    @property
    def key(self) -> bytes:
        """What its features are known by: the picture, and how it is looked at."""
        return self.digest + self.look.key

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the file says; nothing is decoded.

        Raises:
            ImageError: it is no picture, or one too large.
        """
        return picture_size(self.data, self.name)


@dataclass(frozen=True)
class Region:
    """A place in a picture: a name and boxes or quads, coordinates 0…999 of a 1000×1000 grid."""

    name: str
    boxes: tuple[tuple[Point, Point], ...] = ()
    quads: tuple[tuple[Point, Point, Point, Point], ...] = ()


Shown = Image | Clip  # what a prompt shows
Part = Text | Shown | Video | Frames | Region


ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, init=False)
class Message:
    """One turn. An assistant's turn may carry the exact `ids` it was generated as, so that the cache still fits."""

    role: str
    parts: tuple[Part, ...]
    ids: tuple[int, ...] | None = None

    def __init__(self, role: str, parts: str | Sequence[str | Part], ids: Sequence[int] | None = None) -> None:
        """
        Args:
            role: one of ROLES.
            parts: texts, pictures, videos and regions in order; a str is a Text.
            ids: token ids of an assistant's turn.
        Raises:
            PromptError: another role, or a part that is none.
        """
        if role not in ROLES:
            raise PromptError(f"role {role!r} is unknown; use {', '.join(ROLES)}")
        given = [parts] if isinstance(parts, str | Part) else parts
        if not isinstance(given, Sequence) or isinstance(given, bytes):
            raise PromptError(f"a message is a text or a list of parts and not {_kind(given)}; give one of them")
        found = tuple(Text(part) if isinstance(part, str) else part for part in given)
        for part in found:
            if not isinstance(part, Part):
                raise PromptError(
                    f"a part of a message is a Text, an Image, a Video, Frames or a Region and not {_kind(part)}"
                )
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "parts", found)
        object.__setattr__(self, "ids", None if ids is None else tuple(ids))


# What a user asks: one text, or turns of which the last is the user's.
Conversation = str | Sequence[Message]


def turns_of(conversation: Conversation, images: Sequence[bytes] = ()) -> Sequence[Message]:
    """The turns of a conversation; a text is one, with the pictures before it.

    Raises:
        UsageError: pictures beside turns.
        PromptError: neither a text nor turns.
    """
    if isinstance(conversation, str):
        return [Message("user", [*(Image(data) for data in images), conversation])]
    if images:
        raise UsageError("a conversation carries its pictures in its messages; leave `images` empty")
    turns: Sequence[Message] = conversation
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Message) for turn in turns):
        raise PromptError("a prompt is a text or a list of vlm_trt.Message; give one of them")
    return turns


@dataclass(frozen=True)
class ImageSpan:
    """The positions start…stop−1 of the prompt hold features of `image`: all of them, or those of one of its tiles."""

    start: int
    stop: int
    image: int  # index into Prompt.images
    grid: tuple[int, int, int] | None = None  # frames, rows and columns of its tokens, where positions depend on them
    time_step: float = 1.0  # positions from one of its frames to the next


@dataclass(frozen=True)
class PromptShape:
    """What a sequence's positions depend on, of its prompt."""

    tokens: int
    prefix: int = 0  # the first so many positions attend to each other in both directions
    spans: tuple[ImageSpan, ...] = ()  # those of pictures whose tokens have a row and a column


class PlaceKind(StrEnum):
    """What a place is."""

    BOX = "box"
    POINT = "point"

    @property
    def plural(self) -> str:
        return "boxes" if self is PlaceKind.BOX else "points"


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]  # those of picture positions are not looked up
    spans: tuple[ImageSpan, ...]  # in order; of a picture all together
    images: tuple[Shown, ...]
    dropped_turns: int = 0  # oldest turns left out because the window was full
    prefix: int = 0  # as `PromptShape` has it
    places: PlaceKind | None = None  # what the model answers with instead of words, through its region heads

    @property
    def picture_tokens(self) -> int:
        """How many positions hold features of pictures."""
        return sum(span.stop - span.start for span in self.spans)

    @property
    def shape(self) -> PromptShape:
        return PromptShape(len(self.ids), self.prefix, tuple(span for span in self.spans if span.grid is not None))

    def image_rows(self, length: int | None = None) -> NDArray[np.int64]:
        """Row of the pictures' stacked features at each position, −1 for text; `length` counts what follows too."""
        rows = np.full(len(self.ids) if length is None else length, -1, dtype=np.int64)
        row = 0
        for span in self.spans:
            tokens = span.stop - span.start
            rows[span.start : span.stop] = np.arange(row, row + tokens)
            row += tokens
        return rows


@dataclass(frozen=True)
class Grounding:
    """A place an answer names, in pixels of the original picture."""

    name: str  # "" where the answer gives none
    kind: str  # "box" (two corners), "quad" (four) or "point"
    points: tuple[tuple[float, float], ...]
    picture: int  # index among the conversation's pictures
    mask_codes: tuple[int, ...] = ()  # of its outline, for a mask decoder; no checkpoint has one


@dataclass(frozen=True)
class Answered:
    """An answer, read."""

    plain_text: str
    groundings: tuple[Grounding, ...]
    malformed: int = 0  # tags that hold no valid place


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
