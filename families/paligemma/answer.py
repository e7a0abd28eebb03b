"""What an answer says of places: `<loc…>` four times, maybe `<seg…>` sixteen times, a name; a semicolon between them.

Source: the meaning of the codes and their order, y1 x1 y2 x2, are big_vision's; how to take broken ones is ours.
"""

import re
from collections.abc import Sequence

from vlm_trt.families.messages import Answered, Grounding
from vlm_trt.families.paligemma.codes import LOCATIONS, SEGMENTS

_CODE = re.compile(r"<(loc)(\d{4})>|<(seg)(\d{3})>", re.ASCII)
_CODES = re.compile(r"(?:<loc\d{4}>|<seg\d{3}>)+ ?", re.ASCII)  # and the blank before the name
_PLACE = re.compile(r"\s*((?:<loc\d{4}>){4})((?:<seg\d{3}>){16})?", re.ASCII)
_CONTROL = re.compile("<(?:bos|eos|pad)>")
_SEPARATORS = "; \t\r\n"


def parse_answer(text: str, sizes: Sequence[tuple[int, int]]) -> Answered:
    """The answer without its codes, and every place it names.

    Args:
        text: as generated, with codes.
        sizes: width and height of the conversation's pictures, pixels. Places belong to the last one: the codes do
            not say which picture they mean.
    Returns:
        Boxes in order, coordinates in pixels of the original picture, the codes of their outlines with them. A part
        between semicolons that holds codes but no place is counted in `malformed`: too few or too many codes, codes
        behind the name, a box whose second corner is not beyond its first.
    """
    shown = _CONTROL.sub("", text)
    places: list[Grounding] = []
    malformed = 0
    for part in shown.split(";"):
        if not _CODE.search(part):
            continue
        place = _place(part, sizes)
        if place is None:
            malformed += 1
        else:
            places.append(place)
    plain = _CODES.sub("", shown)
    return Answered(plain.strip(_SEPARATORS if plain != shown else None), tuple(places), malformed)


def _place(part: str, sizes: Sequence[tuple[int, int]]) -> Grounding | None:
    """The box that a part of the answer holds; None where it is broken or there is no picture."""
    found = _PLACE.match(part)
    if not found or not sizes or _CODE.search(part, found.end()):
        return None
    y1, x1, y2, x2 = _numbers(found[1])
    outline = _numbers(found[2] or "")
    if x2 <= x1 or y2 <= y1 or max(x2, y2) >= LOCATIONS or any(code >= SEGMENTS for code in outline):
        return None
    width, height = sizes[-1]
    corners = [(x * width / LOCATIONS, y * height / LOCATIONS) for x, y in ((x1, y1), (x2, y2))]
    return Grounding(part[found.end() :].strip(), "box", tuple(corners), len(sizes) - 1, outline)


def _numbers(codes: str) -> tuple[int, ...]:
    return tuple(int(location or segment) for _, location, _, segment in _CODE.findall(codes))
