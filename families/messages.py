"""What a user says to a model: text, pictures and regions as separate parts, never tags inside text."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Image:
    """An encoded picture (PNG, JPEG, …). `name` is written into the prompt's image span and changes no answer."""

    data: bytes = field(repr=False)
    name: str = ""


@dataclass(frozen=True)
class Region:
    """A place in a picture: a name and boxes or quads, coordinates 0…999 of a 1000×1000 grid."""

    name: str
    boxes: tuple[tuple[Point, Point], ...] = ()
    quads: tuple[tuple[Point, Point, Point, Point], ...] = ()


Part = Text | Image | Region


@dataclass(frozen=True)
class Message:
    """One turn. An assistant's turn may carry the exact `ids` it was generated as, so that the cache still fits."""

    role: str  # "system", "user", "assistant"
    parts: tuple[Part, ...]
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ImageSpan:
    """The positions start…stop−1 of the prompt hold the features of `image`."""

    start: int
    stop: int
    image: int  # index into Prompt.images


@dataclass(frozen=True)
class Prompt:
    ids: tuple[int, ...]
    spans: tuple[ImageSpan, ...]
    images: tuple[Image, ...]
    dropped_turns: int = 0  # oldest turns left out because the window was full

    def image_rows(self, length: int | None = None) -> NDArray[np.int64]:
        """Row of the pictures' stacked features at each position, −1 for text; `length` counts what follows too."""
        rows = np.full(len(self.ids) if length is None else length, -1, dtype=np.int64)
        for span in self.spans:
            tokens = span.stop - span.start
            rows[span.start : span.stop] = np.arange(span.image * tokens, (span.image + 1) * tokens)
        return rows


@dataclass(frozen=True)
class Grounding:
    """A place an answer names, in pixels of the original picture."""

    name: str  # "" where the answer gives none
    kind: str  # "box" (two corners) or "quad" (four)
    points: tuple[tuple[float, float], ...]
    picture: int  # index among the conversation's pictures


@dataclass(frozen=True)
class Answered:
    """An answer, read."""

    plain_text: str
    groundings: tuple[Grounding, ...]
    malformed: int = 0  # tags that hold no valid place
