"""Places that answers name between tags: a name, then boxes and quads on a grid of 1000 → pixels, and back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlm_trt.families.messages import Answered, Grounding

# Coordinates are steps of a grid over the original picture.
GRID = 1000
_POINT = re.compile(r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)", re.ASCII)
# What a place that was cut short may have left of its coordinates.
_REMAINS = re.compile(r"(?:[\s(),\d]*[(),\d])?", re.ASCII)
_POINTS = {"box": 2, "quad": 4}


@dataclass(frozen=True)
class Notation:
    """How a family writes places."""

    name: tuple[str, str]  # the tags around a name
    box: tuple[str, str]
    quad: tuple[str, str]
    separators: str  # between the places of one name may stand only these

    @property
    def tags(self) -> dict[str, tuple[str, bool]]:
        """What each tag is about, and whether it opens."""
        kinds = {"name": self.name, "box": self.box, "quad": self.quad}
        return {tag: (kind, at == 0) for kind, pair in kinds.items() for at, tag in enumerate(pair)}


def read_places(text: str, sizes: Sequence[tuple[int, int]], notation: Notation) -> Answered:
    """The answer without its tags, and every place it names.

    A name belongs to the places right behind it, until other text follows; a place without one has the name "".

    Args:
        text: as generated, with tags.
        sizes: width and height of the conversation's pictures, pixels. Places belong to the last one, as in the
            originals, whose answers do not say which picture they mean.
        notation: of the family.
    Returns:
        Places in order, coordinates in pixels of the original picture; a box or quad that is not closed or holds no
        valid points is counted in `malformed`, and its coordinates are not part of the plain text either.
    """
    places: list[Grounding] = []
    plain: list[str] = []
    name, malformed, tags = "", 0, notation.tags
    # text, tag, text, tag, …, text: one pass, whatever the tags
    pieces = re.split(f"({'|'.join(map(re.escape, tags))})", text)
    for at in range(0, len(pieces), 2):
        kind, opens = tags[pieces[at - 1]] if at else ("", False)
        opened = kind if opens else ""
        content, behind = pieces[at], pieces[at + 1 : at + 2]
        closed = bool(behind) and tags[behind[0]] == (opened, False)
        if opened not in _POINTS:
            plain.append(content)
            if opened == "name":
                name = content.strip() if closed else ""
            elif content.strip(notation.separators):
                name = ""
            continue
        points = _points(content, opened, notation) if closed else None
        if points is None or not sizes:
            malformed += 1
            if not closed:  # what follows the coordinates is ordinary text
                plain.append(_REMAINS.sub("", content, count=1))
            continue
        width, height = sizes[-1]
        pixels = tuple((x * width / GRID, y * height / GRID) for x, y in points)
        places.append(Grounding(name, opened, pixels, len(sizes) - 1))
    return Answered("".join(plain).strip(), tuple(places), malformed)


def written_places(name: str, boxes: Sequence[tuple[float, float, float, float]], notation: Notation) -> str:
    """The answer that names places.

    Args:
        name: of what is there.
        boxes: left, top, right, bottom as shares of the picture's width and height.
        notation: of the family.
    """

    def point(x: float, y: float) -> str:
        return f"({min(round(x * GRID), GRID - 1)},{min(round(y * GRID), GRID - 1)})"

    opening, closing = notation.box
    places = (f"{opening}{point(left, top)},{point(right, bottom)}{closing}" for left, top, right, bottom in boxes)
    return f"{notation.name[0]}{name}{notation.name[1]}{''.join(places)}"


def _points(content: str, kind: str, notation: Notation) -> list[tuple[int, int]] | None:
    """The corners of a box or quad on the grid; None unless there are as many as it needs, and nothing else."""
    points = [(int(x), int(y)) for x, y in _POINT.findall(content)]
    valid = len(points) == _POINTS[kind] and all(c <= GRID for point in points for c in point)
    return points if valid and not _POINT.sub("", content).strip(notation.separators) else None
