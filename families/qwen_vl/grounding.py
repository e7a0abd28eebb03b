"""What an answer says of places: `<ref>name</ref><box>(x1,y1),(x2,y2)</box>` and `<quad>…</quad>` → pixels."""

from collections.abc import Sequence

from vlm_trt.families.messages import Answered
from vlm_trt.families.tagged_places import Notation, read_places, written_places

NOTATION = Notation(("<ref>", "</ref>"), ("<box>", "</box>"), ("<quad>", "</quad>"), separators=" \t\r\n,，、;；")


def parse_answer(text: str, sizes: Sequence[tuple[int, int]]) -> Answered:
    """As `read_places`."""
    return read_places(text, sizes, NOTATION)


def write_places(name: str, boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """As `written_places`."""
    return written_places(name, boxes, NOTATION)
