"""What an answer says of places: `<ref>name</ref><box>(x1,y1),(x2,y2)</box>` and `<quad>…</quad>` → pixels."""

import re
from collections.abc import Sequence

from models.messages import Answered, Grounding

# The model writes coordinates 0…999 of a grid of 1000 over the original picture.
GRID = 1000
_TAGS = re.compile(r"</?(?:ref|box|quad)>")
_PLACE = re.compile(r"<ref>(?P<name>.*?)</ref>|<(?P<kind>box|quad)>(?P<points>.*?)</(?P=kind)>", re.DOTALL)
_POINT = re.compile(r"\(\s*(\d{1,4})\s*,\s*(\d{1,4})\s*\)")
_POINTS = {"box": 2, "quad": 4}


def parse_answer(text: str, sizes: Sequence[tuple[int, int]]) -> Answered:
    """The answer without its tags, and every place it names.

    Args:
        text: as generated, with tags.
        sizes: width and height of the conversation's pictures, pixels. Places belong to the last one, as in the
            original, whose answers do not say which picture they mean.
    Returns:
        Places in order, coordinates in pixels of the original picture; a tag that holds no valid points is counted
        in `malformed` and otherwise ignored.
    """
    places: list[Grounding] = []
    name, malformed = "", 0
    for match in _PLACE.finditer(text):
        if match["kind"] is None:
            name = match["name"].strip()
            continue
        points = [(int(x), int(y)) for x, y in _POINT.findall(match["points"])]
        valid = len(points) == _POINTS[match["kind"]] and all(0 <= c <= GRID for point in points for c in point)
        if not valid or not sizes:
            malformed += 1
            continue
        width, height = sizes[-1]
        pixels = tuple((x * width / GRID, y * height / GRID) for x, y in points)
        places.append(Grounding(name, match["kind"], pixels, len(sizes) - 1))
    return Answered(_TAGS.sub("", _without_points(text)).strip(), tuple(places), malformed)


def _without_points(text: str) -> str:
    """The text without the coordinates between box and quad tags."""
    return re.sub(r"<(box|quad)>.*?</\1>", "", text, flags=re.DOTALL)
