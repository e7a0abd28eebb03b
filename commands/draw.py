"""`--draw`: the picture with the answer's places in it, written where the user said."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.output import require_output, write_output
from vlm_trt.commands.terminal import say
from vlm_trt.families.images import decode_image
from vlm_trt.families.messages import Image, Part
from vlm_trt.runtime.model import Answer

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


def require_drawable(target: Path) -> None:
    """Asked before an answer is generated, which may take minutes.

    Raises:
        UsageError: the name's ending is that of no picture format.
        StorageError: the file cannot be written.
    """
    if target.suffix.lower() not in _FORMATS:
        raise UsageError(f"--draw {target}: the name's ending chooses the format; use one of {', '.join(_FORMATS)}")
    require_output(target)


def write_drawing(answer: Answer, parts: Sequence[Part], target: Path) -> None:
    """Draws the answer's places into the last picture of the prompt, which they belong to.

    Raises:
        StorageError: the file cannot be written.
    """
    from vlm_trt.runtime.drawing import draw_regions

    pictures = [part for part in parts if isinstance(part, Image)]
    places = [one for one in answer.groundings if one.picture == len(pictures) - 1]
    drawn = draw_regions(decode_image(pictures[-1].data, pictures[-1].name), places)
    encoded = BytesIO()
    drawn.save(encoded, format=_FORMATS[target.suffix.lower()], quality=95)
    write_output(target, encoded.getvalue())
    say(f"wrote {target}" + ("" if places else ": the answer names no place, so it is the picture as it was"))
