"""`--draw`: the picture with the answer's places in it, written where the user said."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.output import require_output, write_output
from vlm_trt.commands.terminal import say
from vlm_trt.families.clips import Video
from vlm_trt.families.images import decode_image, picture_size
from vlm_trt.families.messages import Image, Part
from vlm_trt.runtime.model import Answer

if TYPE_CHECKING:
    from vlm_trt.runtime.drawing import Place

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}


# Pixels a side. Sources: WebP's VP8 frame header has 14 bits for each side, JPEG's has 16, and libjpeg stops before.
_LONGEST = {"WEBP": 16383, "JPEG": 65500}


def require_drawable(target: Path, sources: Sequence[Path], parts: Sequence[Part]) -> None:
    """Asked before an answer is generated, which may take minutes.

    Args:
        target: the file to write.
        sources: the files of the pictures, which stay as they are.
        parts: of the prompt; its last picture is drawn into.
    Raises:
        UsageError: no picture to draw into; the name's ending is that of no picture format, or of one that cannot hold
            the picture; the target is one of the sources.
        StorageError: the file cannot be written.
    """
    pictures = [part for part in parts if isinstance(part, Image)]
    if not pictures:
        raise UsageError("--draw needs a picture to draw on; give one with --image")
    if _shown(parts)[-1] is not pictures[-1]:
        raise UsageError("--draw draws into the last picture, and a video stands behind it here; give the --image last")
    picture_format(target, pictures[-1])
    require_output(target, read=sources)


def picture_format(target: Path, picture: Image) -> str:
    """What Pillow calls the format of that file.

    Raises:
        UsageError: the name's ending is that of no picture format, or of one that cannot hold the picture.
    """
    kind = _FORMATS.get(target.suffix.lower())
    if kind is None:
        raise UsageError(f"--draw {target}: the name's ending chooses the format; use one of {', '.join(_FORMATS)}")
    size = picture_size(picture.data, picture.name)
    if max(size) > _LONGEST.get(kind, max(size)):
        raise UsageError(
            f"--draw {target}: {kind} holds at most {_LONGEST[kind]} pixels a side, and the picture is "
            f"{size[0]}×{size[1]}; use .png"
        )
    return kind


def write_drawing(answer: Answer, parts: Sequence[Part], target: Path) -> None:
    """Draws the answer's places into the last picture of the prompt, which they belong to.

    Raises:
        StorageError: the file cannot be written.
    """
    pictures = [part for part in parts if isinstance(part, Image)]
    places = [one for one in answer.groundings if one.picture == len(_shown(parts)) - 1]
    draw_places(pictures[-1], places, target)
    say(f"wrote {target}" + ("" if places else ": the answer names no place, so it is the picture as it was"))


def draw_places(picture: Image, places: Sequence["Place"], target: Path) -> None:
    """The picture with the places in it.

    Raises:
        StorageError: the file cannot be written.
    """
    from vlm_trt.runtime.drawing import draw_regions

    drawn, encoded = draw_regions(decode_image(picture.data, picture.name), places), BytesIO()
    drawn.save(encoded, format=picture_format(target, picture), quality=95)
    write_output(target, encoded.getvalue())


def _shown(parts: Sequence[Part]) -> list[Part]:
    """What an answer's places count: pictures and videos."""
    return [part for part in parts if isinstance(part, Image | Video)]
