"""What an answer says of places: JSON with boxes and points in pixels of the resized picture → the original's.

`[{"bbox_2d": [100, 50, 300, 250], "label": "dog"}]`, often in a fence of three backticks. A list that was cut short
keeps its complete objects.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_trt.families.messages import Answered, Grounding

Size = tuple[int, int]  # width and height, pixels
_KINDS = {"bbox_2d": ("box", 2), "point_2d": ("point", 1)}  # by key: what it is, and how many points it has
_KEY = re.compile(r'"(?:bbox_2d|point_2d)"')
# From behind a brace to the next one, or the end; braces in strings are none. A string that is not closed ends there.
_INSIDE = re.compile(r'[^{}"]*+(?:"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)[^{}"]*+)*+', re.DOTALL)
_CONTROL = re.compile(r"<\|(?:im_end|endoftext)\|>")
_SEPARATORS = " \t\r\n,"


@dataclass(frozen=True)
class _Object:
    """One that says something of a place, at start…stop−1 of the text."""

    start: int
    stop: int
    place: Grounding | None  # None: it is broken


def parse_json_places(text: str, sizes: Sequence[Size], resized: Callable[[Size], Size]) -> Answered:
    """The answer, names in the place of its objects, and every place it names.

    Args:
        text: as generated.
        sizes: width and height of the conversation's pictures, pixels. Places belong to the last one: the answer does
            not say which picture it means.
        resized: the size that the model sees a picture of a size in.
    Returns:
        Boxes and points in order, coordinates in pixels of the original picture. An object with a place's key that is
        cut short, no JSON, or holds no valid numbers is counted in `malformed`.
    """
    said = _CONTROL.sub("", text)
    objects = list(_objects(said, sizes, resized))
    places = tuple(one.place for one in objects if one.place is not None)
    return Answered(_plain(said, objects), places, len(objects) - len(places))


def _objects(text: str, sizes: Sequence[Size], resized: Callable[[Size], Size]) -> Iterator[_Object]:
    """The innermost objects that have a place's key, in one pass, whatever stands around them."""
    start = text.find("{")
    while start >= 0:
        found = _INSIDE.match(text, start + 1)
        assert found is not None, "it matches nothing too"
        stop = found.end()
        if text.startswith("{", stop):
            start = stop
            continue
        closed = text.startswith("}", stop)
        if _KEY.search(text, start, stop):
            place = _place(text[start : stop + 1], sizes, resized) if closed else None
            yield _Object(start, stop + closed, place)
        start = text.find("{", stop)


def _place(written: str, sizes: Sequence[Size], resized: Callable[[Size], Size]) -> Grounding | None:
    """The place that an object names; None where it is broken or there is no picture."""
    try:
        read = json.loads(written, strict=False)
    except (ValueError, RecursionError):
        return None
    key = next((key for key in _KINDS if key in read), None)
    if key is None or not sizes:  # the key stood within a text
        return None
    kind, count = _KINDS[key]
    seen, size = resized(sizes[-1]), sizes[-1]
    if not _lie_within(read[key], count, seen):
        return None
    numbers, label = read[key], read.get("label")
    pixels = tuple(
        (x * size[0] / seen[0], y * size[1] / seen[1]) for x, y in zip(numbers[::2], numbers[1::2], strict=True)
    )
    return Grounding(label if isinstance(label, str) else "", kind, pixels, len(sizes) - 1)


def _lie_within(numbers: Any, count: int, size: Size) -> bool:
    """Whether these are the coordinates of so many points of a picture of that size."""
    if not isinstance(numbers, list) or len(numbers) != 2 * count:
        return False
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        return False
    return all(0 <= number <= size[at % 2] for at, number in enumerate(numbers))  # NaN lies nowhere


def _plain(text: str, objects: Sequence[_Object]) -> str:
    """The text without its objects, the list and the fence around them; the names stand where they stood."""
    if not objects:
        return text.strip()
    before = text[: objects[0].start].rstrip().removesuffix("[").rstrip()
    before = (
        before.removesuffix("json").removesuffix("```") if before.endswith("```json") else before.removesuffix("```")
    )
    behind = text[objects[-1].stop :].lstrip(_SEPARATORS).removeprefix("]").lstrip().removeprefix("```")
    names = ""
    for at, one in enumerate(objects):
        between = text[objects[at - 1].stop : one.start] if at else ""
        name = one.place.name if one.place else ""
        apart = between if between.strip(_SEPARATORS) else ", " if names and name else ""
        names += apart + name
    return f"{before}{names}{behind}".strip()
