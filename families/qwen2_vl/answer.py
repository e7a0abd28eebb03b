"""What an answer says of places: a name and boxes between control tokens, on a grid of 1000 → pixels.

`<|object_ref_start|>dog<|object_ref_end|><|box_start|>(221,423),(569,886)<|box_end|>`
"""

import re
from collections.abc import Sequence

from vlm_trt.families.messages import Answered, Grounding

GRID = 1000  # of the original picture
_TAG = re.compile(r"<\|(object_ref|box|quad)_(start|end)\|>")
_CONTROL = re.compile(r"<\|(?:im_end|endoftext)\|>")
_POINT = re.compile(r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)", re.ASCII)
# What a place that was cut short may have left of its coordinates.
_REMAINS = re.compile(r"(?:[\s(),\d]*[(),\d])?", re.ASCII)
_POINTS = {"box": 2, "quad": 4}
# Between the places of one name may stand only these.
_SEPARATORS = " \t\r\n,;"


def parse_answer(text: str, sizes: Sequence[tuple[int, int]]) -> Answered:
    """The answer without its tags, and every place it names.

    A name belongs to the places right behind it, until other text follows; a place without one has the name "".

    Args:
        text: as generated, with tags.
        sizes: width and height of the conversation's pictures, pixels. Places belong to the last one: the answer does
            not say which picture it means.
    Returns:
        Places in order, coordinates in pixels of the original picture; a box or quad that is not closed or holds no
        valid points is counted in `malformed`, and its coordinates are not part of the plain text either.
    """
    places: list[Grounding] = []
    plain: list[str] = []
    name, malformed = "", 0
    pieces = ["", "", *_TAG.split(_CONTROL.sub("", text))]  # kind, end and the text behind it, of each tag
    for at in range(0, len(pieces), 3):
        opened = pieces[at] if pieces[at + 1] == "start" else ""
        content, closed = pieces[at + 2], pieces[at + 3 : at + 5] == [opened, "end"]
        if opened not in _POINTS:
            plain.append(content)
            if opened == "object_ref":
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

    places = "".join(
        f"<|box_start|>{point(left, top)},{point(right, bottom)}<|box_end|>" for left, top, right, bottom in boxes
    )
    return f"<|object_ref_start|>{name}<|object_ref_end|>{places}"


def _points(content: str, kind: str) -> list[tuple[int, int]] | None:
    """The corners of a box or quad on the grid; None unless there are as many as it needs, and nothing else."""
    points = [(int(x), int(y)) for x, y in _POINT.findall(content)]
    valid = len(points) == _POINTS[kind] and all(c <= GRID for point in points for c in point)
    return points if valid and not _POINT.sub("", content).strip(_SEPARATORS) else None
