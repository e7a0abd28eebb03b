"""Places an answer names, drawn into the picture: outlines and labels that can be read on any background."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from io import BytesIO
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

Point = tuple[float, float]
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
    (0, 114, 178),
)
_DARK, _LIGHT = (0, 0, 0), (255, 255, 255)


class Place(Protocol):
    """A box (two opposite corners) or a quad (four), in pixels of the picture."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...  # "box", "quad" or "point"
    @property
    def points(self) -> tuple[Point, ...]: ...


def draw_regions(picture: Image.Image, places: Sequence[Place]) -> Image.Image:
    """A copy of the picture with every place outlined and labelled; places of one name share a colour.

    Args:
        picture: any size, drawn as RGB; it is not changed.
        places: outlines are cut at the picture's edge. A place without a name has no label, and nor has any in a
            picture too small for one; a name wider than the picture ends in "…".
    """
    drawn = picture.convert("RGB")
    draw = ImageDraw.Draw(drawn)
    side = min(drawn.size)
    width = max(1, round(side / 130))
    font = _font(max(9, round(side / 24)))
    names = list(dict.fromkeys(place.name for place in places))
    colours = [_colour(names.index(place.name)) for place in places]
    for place, colour in zip(places, colours, strict=True):
        _outline(draw, place, colour, width)
    taken: list[Box] = []
    for place, colour in zip(places, colours, strict=True):
        text = _fitting(_shown(place.name), font, drawn.size)
        if text:
            taken.append(_label(draw, place, text, colour, font, taken))
    return drawn


def _colour(index: int) -> Colour:
    """The palette's colours, then ever new hues a golden section apart, strong and pale in turn."""
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, (0.9, 0.45)[index % 2], (0.8, 1.0)[index % 2])
    return round(red * 255), round(green * 255), round(blue * 255)


def _outline(draw: ImageDraw.ImageDraw, place: Place, colour: Colour, width: int) -> None:
    """A closed line in the colour, on a darker and wider one that sets it off from a background of its own colour."""
    right, bottom = draw.im.size[0] - 1, draw.im.size[1] - 1
    if place.kind == "box":  # cut to the picture, so that a side beyond the edge is seen along it
        (x1, y1), (x2, y2) = ((min(max(x, 0), right), min(max(y, 0), bottom)) for x, y in place.points)
        corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    elif place.kind == "point":  # a rhomb around it, so that what is pointed at is seen
        ((x, y),) = place.points
        corners = [(x - 4 * width, y), (x, y - 4 * width), (x + 4 * width, y), (x, y + 4 * width)]
    else:
        corners = list(place.points)
    lines: list[list[Point]] = [[*corners, corners[0], corners[1]]]
    if any(not (0 <= x <= right and 0 <= y <= bottom) for x, y in corners):
        sides = zip(corners, [*corners[1:], corners[0]], strict=True)
        cut = (_inside(start, end, (-width, -width, right + width, bottom + width)) for start, end in sides)
        lines = [[*piece] for piece in cut if piece]
    for fill, thickness in ((_DARK, width + 2), (colour, width)):
        for line in lines:
            draw.line(line, fill=fill, width=thickness, joint="curve")


def _inside(start: Point, end: Point, limits: Box) -> tuple[Point, Point] | None:
    """The piece of a line within the limits, None if it passes them by. Source: Liang and Barsky 1984."""
    enters, leaves = 0.0, 1.0
    for axis in (0, 1):
        length = end[axis] - start[axis]
        low, high = limits[axis] - start[axis], limits[axis + 2] - start[axis]
        if length == 0:
            if low > 0 or high < 0:
                return None
            continue
        near, far = sorted((low / length, high / length))
        enters, leaves = max(enters, near), min(leaves, far)
    if enters > leaves:
        return None
    dx, dy = end[0] - start[0], end[1] - start[1]
    return (start[0] + enters * dx, start[1] + enters * dy), (start[0] + leaves * dx, start[1] + leaves * dy)


def _padding(font: ImageFont.FreeTypeFont) -> int:
    return max(1, round(font.size / 6))


def _plate_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, float]:
    return font.getlength(text) + 2 * _padding(font), sum(font.getmetrics()) + 2 * _padding(font)


def _fitting(text: str, font: ImageFont.FreeTypeFont, size: tuple[int, int]) -> str:
    """The text, shortened until its plate fits in the picture; empty if nothing of it does."""
    shortened = [text, *(text[:kept].rstrip() + "…" for kept in range(len(text) - 1, 0, -1))]
    fits = (line for line in shortened if all(a < b for a, b in zip(_plate_size(line, font), size, strict=True)))
    return next(fits, "") if text else ""


def _label(
    draw: ImageDraw.ImageDraw, place: Place, text: str, colour: Colour, font: ImageFont.FreeTypeFont, taken: list[Box]
) -> Box:
    """A filled plate with the name; where it lies."""
    plate = _plate(draw.im.size, place, text, font, taken)
    draw.rectangle(plate, fill=colour)
    ink = _DARK if luminance(colour) > 0.18 else _LIGHT  # above it black has the higher contrast
    draw.text((plate[0] + _padding(font), plate[1] + _padding(font)), text, fill=ink, font=font, anchor="la")
    return plate


def _plate(size: tuple[int, int], place: Place, text: str, font: ImageFont.FreeTypeFont, taken: Sequence[Box]) -> Box:
    """Above the place, else below, else inside its top, moved down until it covers no other label where it can."""
    right, bottom = size
    width, height = _plate_size(text, font)
    xs, ys = [x for x, _ in place.points], [y for _, y in place.points]
    left = min(max(min(xs), 0), right - 1 - width)

    def at(top: float) -> Box:
        top = min(max(top, 0), bottom - 1 - height)
        return (left, top, left + width, top + height)

    steps = [min(ys) - height, max(ys), min(ys)]
    steps += [min(ys) + n * height for n in range(1, int(bottom // height) + 1)]
    steps += [n * height for n in range(int(bottom // height) + 1)]
    candidates = [at(step) for step in steps]
    return next((box for box in candidates if not any(_overlap(box, other) for other in taken)), candidates[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shown(name: str) -> str:
    """One line of the name, its characters that the font lacks written as U+XXXX."""
    line = " ".join(name.split())
    line = line if len(line) <= 60 else line[:59] + "…"
    known = _covered()
    return "".join(c if ord(c) in known else f"[U+{ord(c):04X}]" for c in line)


def luminance(colour: Colour) -> float:
    """Relative luminance 0…1. Source: WCAG 2, definition of relative luminance."""
    red, green, blue = ((c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@lru_cache(maxsize=1)
def _font_bytes() -> bytes:
    return files("vlm_trt.runtime").joinpath("fonts/labels.ttf").read_bytes()


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
