"""What an answer says of places: a name and boxes between control tokens → pixels.

`<|object_ref_start|>dog<|object_ref_end|><|box_start|>(221,423),(569,886)<|box_end|>`
"""

import re
from collections.abc import Sequence

from vlm_trt.families.messages import Answered
from vlm_trt.families.tagged_places import Notation, read_places, written_places

NOTATION = Notation(
    ("<|object_ref_start|>", "<|object_ref_end|>"),
    ("<|box_start|>", "<|box_end|>"),
    ("<|quad_start|>", "<|quad_end|>"),
    separators=" \t\r\n,;",
)
_CONTROL = re.compile(r"<\|(?:im_end|endoftext)\|>")


def parse_answer(text: str, sizes: Sequence[tuple[int, int]]) -> Answered:
    """As `read_places`."""
    return read_places(_CONTROL.sub("", text), sizes, NOTATION)


def write_places(name: str, boxes: Sequence[tuple[float, float, float, float]]) -> str:
    """As `written_places`."""
    return written_places(name, boxes, NOTATION)
