"""What an answer says of places: `<ref>name</ref><box>(x1,y1),(x2,y2)</box>` and `<quad>…</quad>` → pixels."""

import re
from collections.abc import Sequence

from vlm_trt.families.messages import Answered, Grounding

# The model writes coordinates 0…999 of a grid of 1000 over the original picture.
GRID = 1000
_TAG = re.compile(r"(</?(?:ref|box|quad)>)")
_POINT = re.compile(r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)", re.ASCII)
# What a place that was cut short may have left of its coordinates.
_REMAINS = re.compile(r"(?:[\s(),\d]*[(),\d])?", re.ASCII)
_POINTS = {"box": 2, "quad": 4}
# Between the places of one name may stand only these.
_SEPARATORS = " \t\r\n,，、;；"


def parse_answer(text: str, sizes: Sequence[tuple[int, int]]) -> Answered:
    """The answer without its tags, and every place it names.

    A name belongs to the places right behind it, until other text follows; a place without one has the name "".

    Args:
        text: as generated, with tags.
        sizes: width and height of the conversation's pictures, pixels. Places belong to the last one, as in the
            original, whose answers do not say which picture they mean.
    Returns:
        Places in order, coordinates in pixels of the original picture; a box or quad that is not closed or holds no
        valid points is counted in `malformed`, and its coordinates are not part of the plain text either.
    """
    places: list[Grounding] = []
    plain: list[str] = []
    name, malformed = "", 0
    pieces = _TAG.split(text)  # text, tag, text, tag, …, text: one pass, whatever the tags
    for at in range(0, len(pieces), 2):
        opened = pieces[at - 1].strip("<>") if at else ""
        content, closed = pieces[at], pieces[at + 1 : at + 2] == [f"</{opened}>"]
        if opened not in _POINTS:
            plain.append(content)
            if opened == "ref":
                name = content.strip() if closed else ""
            elif content.strip(_SEPARATORS):
                name = ""
            continue
        points = _points(content, opened) if closed else None
        if points is None or not sizes:
            malformed += 1
            if not closed:  # what follows the coordinates is ordinary text
                plain.append(_REMAINS.sub("", content, count=1))
            continue
        width, height = sizes[-1]
        pixels = tuple((x * width / GRID, y * height / GRID) for x, y in points)
        places.append(Grounding(name, opened, pixels, len(sizes) - 1))
    return Answered("".join(plain).strip(), tuple(places), malformed)


def write_places(name: str, boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """The answer that names places.

    Args:
        name: of what is there.
        boxes: left, top, right, bottom as shares of the picture's width and height.
    """

    def point(x: float, y: float) -> str:
        return f"({min(round(x * GRID), GRID - 1)},{min(round(y * GRID), GRID - 1)})"

    places = (f"<box>{point(left, top)},{point(right, bottom)}</box>" for left, top, right, bottom in boxes)
    return f"<ref>{name}</ref>{''.join(places)}"


def _points(content: str, kind: str) -> list[tuple[int, int]] | None:
    """The corners of a box or quad on the grid; None unless there are as many as it needs, and nothing else."""
    points = [(int(x), int(y)) for x, y in _POINT.findall(content)]
    valid = len(points) == _POINTS[kind] and all(c <= GRID for point in points for c in point)
    return points if valid and not _POINT.sub("", content).strip(_SEPARATORS) else None
