"""Pictures → pixel values: made squares by the checkpoint's rule, then (v / 255 − mean) / std.

Byte for byte what the original makes with Pillow. Rows and columns are resized one after the other, as Pillow itself
does it, so that a picture that is far longer than wide needs no square of its longer side.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling, new

from vlm_trt.bundle.picture_rules import CentreCrop, PadSquare, PictureRule, Split, SquareRule, Squash
from vlm_trt.families.messages import Detail
from vlm_trt.families.splitting import tiles_of

_ROWS_AT_ONCE = 256
# Beyond it, the ends of a long picture are cut off before they are enlarged, and not only after: 32768×1 pixels would
# first become 11,000,000×336. What is kept lies within a hair of where it would.
_LONGEST_ASPECT = 100


def pixel_values(
    picture: Image, rule: SquareRule, side: int, detail: Detail = Detail.AUTO
) -> dict[str, NDArray[np.float32]]:
    """`pixel_values` [tiles, 3, side, side] fp32 of an RGB picture of any size.

    Source: `visual.py` of Qwen-VL, CLIPImageProcessor, LlavaImageProcessor (`do_pad`) and SmolVLMImageProcessor of
    transformers, Pillow backend.
    """
    return square_values(squares(picture, rule, side, detail), rule)


def square_values(found: Sequence[Image], rule: SquareRule) -> dict[str, NDArray[np.float32]]:
    """`pixel_values` [squares, 3, side, side] fp32 of square RGB pictures."""
    return {"pixel_values": normalized(found, rule)}


def normalized(found: Sequence[Image], rule: PictureRule) -> NDArray[np.float32]:
    """The colours of square RGB pictures as the rule has them: [squares, 3, side, side]."""
    side = found[0].width
    mean, std = np.array(rule.mean, dtype=np.float32), np.array(rule.std, dtype=np.float32)
    values = np.empty((len(found), 3, side, side), dtype=np.float32)
    for at, one in enumerate(found):
        values[at] = ((np.asarray(one, dtype=np.float32) / np.float32(255) - mean) / std).transpose(2, 0, 1)
    return values


def squares(picture: Image, rule: SquareRule, side: int, detail: Detail = Detail.AUTO) -> list[Image]:
    """The picture as square RGB ones of that side."""
    match rule:
        case Squash():
            return [picture.resize((side, side), Resampling.BICUBIC)]
        case CentreCrop():
            return [_centre(picture, rule.short_side, side)]
        case PadSquare():
            red, green, blue = (int(255 * colour) for colour in rule.mean)
            return [_padded(picture, (red, green, blue), side)]
        case Split():
            return tiles_of(picture, rule, side, detail)


def _centre(picture: Image, short_side: int, side: int) -> Image:
    """The short side becomes `short_side`, the long one keeps the aspect, rounded down; the middle is cut out."""
    width, height = picture.size
    longest = _LONGEST_ASPECT * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
        picture = picture.crop((left, top, left + min(width, longest), top + min(height, longest)))
        width, height = picture.size
    scaled_width, scaled_height = (
        (short_side, int(short_side * height / width))
        if width <= height
        else (int(short_side * width / height), short_side)
    )
    resized = picture.resize((scaled_width, scaled_height), Resampling.BICUBIC)
    left, top = (scaled_width - side) // 2, (scaled_height - side) // 2
    return resized.crop((left, top, left + side, top + side))


def _padded(picture: Image, colour: tuple[int, int, int], side: int) -> Image:
    """The picture in the middle of a square of that colour, resized: first every row of it, then the columns."""
    width, height = picture.size
    longest = max(width, height)
    left, top = (longest - width) // 2, (longest - height) // 2
    rows = new("RGB", (side, longest), colour)
    for first in range(0, height, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, height - first)
        strip = new("RGB", (longest, count), colour)
        strip.paste(picture.crop((0, first, width, first + count)), (left, 0))
        rows.paste(strip.resize((side, count), Resampling.BICUBIC), (0, top + first))
    return rows.resize((side, side), Resampling.BICUBIC)
