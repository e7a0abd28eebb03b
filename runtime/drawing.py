"""Places an answer names, drawn into the picture: outlines and labels that can be read on any background."""

from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

# Distinct on light and dark, also with the common colour-vision deficiencies. Source: Okabe and Ito's palette.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (213, 94, 0),
    (204, 121, 167),
)
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)


class Place(Protocol):
    """A box (two opposite corners) or a quad (four), in pixels of the picture."""

    @property
    def name(self) -> str: ...
    @property
    def points(self) -> tuple[tuple[float, float], ...]: ...


def draw_regions(picture: Image.Image, places: Sequence[Place]) -> Image.Image:
    """A copy of the picture with every place outlined and labelled; places of one name share a colour.

    Args:
        picture: RGB, any size; it is not changed.
        places: outlines are cut at the picture's edge; a place without a name has no label.
    """
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    side = min(drawn.size)
    width = max(1, round(side / 130))
    font = _font(max(9, min(round(side / 24), 72)))
    names = list(dict.fromkeys(place.name for place in places))
    colours = [PALETTE[names.index(place.name) % len(PALETTE)] for place in places]
    for place, colour in zip(places, colours, strict=True):
        _outline(draw, _corners(place), colour, width)
    taken: list[Box] = []
    for place, colour in zip(places, colours, strict=True):
        if place.name:
            taken.append(_label(draw, place, _shown(place.name), colour, font, taken))
    return drawn


def _corners(place: Place) -> list[tuple[float, float]]:
    """The outline's corners in turn."""
    if len(place.points) != 2:
        return list(place.points)
    (x1, y1), (x2, y2) = place.points
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _outline(draw: ImageDraw.ImageDraw, corners: list[tuple[float, float]], colour: Colour, width: int) -> None:
    """A closed line in the colour, on a darker and wider one that sets it off from a background of its own colour."""
    right, bottom = draw.im.size[0] - 1, draw.im.size[1] - 1
    inside = [(min(max(x, 0), right), min(max(y, 0), bottom)) for x, y in corners]
    closed = [*inside, inside[0], inside[1]]
    if width > 1:
        draw.line(closed, fill=_DARK, width=width + 2, joint="curve")
    draw.line(closed, fill=colour, width=width, joint="curve")


def _label(
    draw: ImageDraw.ImageDraw, place: Place, text: str, colour: Colour, font: ImageFont.FreeTypeFont, taken: list[Box]
) -> Box:
    """A filled plate with the name; where it lies."""
    plate = _plate(draw, place, text, font, taken)
    padding = max(1, font.size // 6)
    draw.rectangle(plate, fill=colour)
    dark_on_it = luminance(colour) > 0.18  # above it black has the higher contrast
    draw.text(
        (plate[0] + padding, plate[1] + padding), text, fill=_DARK if dark_on_it else _LIGHT, font=font, anchor="la"
    )
    return plate


def _plate(draw: ImageDraw.ImageDraw, place: Place, text: str, font: ImageFont.FreeTypeFont, taken: list[Box]) -> Box:
    """Above the place, else below, else inside its top, moved down until it covers no other label where it can."""
    right, bottom = draw.im.size
    padding = max(1, font.size // 6)
    width = draw.textlength(text, font=font) + 2 * padding
    height = sum(font.getmetrics()) + 2 * padding
    xs, ys = [x for x, _ in place.points], [y for _, y in place.points]
    left = min(max(min(xs), 0), max(right - 1 - width, 0))

    def at(top: float) -> Box:
        top = min(max(top, 0), max(bottom - 1 - height, 0))
        return (left, top, min(left + width, right - 1), min(top + height, bottom - 1))

    steps = [min(ys) - height, max(ys), min(ys)]
    steps += [min(ys) + n * height for n in range(1, int(bottom // height) + 1)]
    steps += [n * height for n in range(int(bottom // height) + 1)]
    candidates = [at(step) for step in steps]
    return next((box for box in candidates if not any(_overlap(box, other) for other in taken)), candidates[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shown(name: str) -> str:
    """One line of the name, its characters that the font lacks written as U+XXXX."""
    line = " ".join(name.split())[:60]
    known = _covered()
    return "".join(c if ord(c) in known else f"[U+{ord(c):04X}]" for c in line)


def luminance(colour: Colour) -> float:
    """Relative luminance 0…1. Source: WCAG 2, definition of relative luminance."""
    red, green, blue = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@lru_cache(maxsize=1)
def _font_bytes() -> bytes:
    return files("runtime").joinpath("fonts/labels.ttf").read_bytes()


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(BytesIO(_font_bytes()), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=1)
def _covered() -> frozenset[int]:
    """Code points the font has, from its cmap (format 4, which its subset always carries).

    Source: OpenType specification, cmap table.
    """
    data = _font_bytes()

    def number(at: int, length: int = 2) -> int:
        return int.from_bytes(data[at : at + length], "big")

    tables = {data[at : at + 4]: number(at + 8, 4) for at in range(12, 12 + 16 * number(4), 16)}
    cmap = tables[b"cmap"]
    offsets = [cmap + number(cmap + 4 + 8 * i + 4, 4) for i in range(number(cmap + 2))]
    start = next(offset for offset in offsets if number(offset) == 4)
    segments = number(start + 6) // 2
    codes: set[int] = set()
    for i in range(segments):
        last = number(start + 14 + 2 * i)
        first = number(start + 16 + 2 * segments + 2 * i)
        codes |= set(range(first, min(last, 0xFFFE) + 1))
    return frozenset(codes)
