"""Encoded pictures → pixels, with everything dangerous refused before a pixel is decoded.

As the original (`Image.open(path).convert("RGB")`): EXIF orientation is ignored, alpha is dropped, CMYK is converted,
of an animation the first frame counts. One deliberate difference: 16-bit grey keeps its high byte, where `convert`
would clip nearly all of it to white.
"""

import io
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_trt.bundle.errors import ImageError
from vlm_trt.bundle.reading import read_bytes, require_regular
from vlm_trt.families.picture_files import PictureFile, picture_file

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_SIDE = 32_768
# What decoding may take beside the decoded pixels, of four bytes each.
MAX_DECODER_BYTES = 288 << 20
# Warning filters belong to the process: two threads that silence them at once would leave them silenced for good.
# One decoding at a time also bounds the memory that a server's pictures take.
_DECODING = threading.Lock()
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, **dict.fromkeys(_SIXTEEN_BIT, 2)}
_ROWS_AT_ONCE = 64


def decode_image(data: bytes, name: str = "") -> Image.Image:
    """The picture as 8-bit RGB.

    Args:
        data: an encoded picture, at most MAX_BYTES.
        name: named in errors.
    Raises:
        ImageError: unknown format, too large, too costly to decode, truncated or damaged.
    """
    what = name or "the picture"
    file = _looked_at(data, what)
    try:
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; we check ourselves
            picture = Image.open(io.BytesIO(file.data), formats=[file.kind])
            if picture.size != file.size:  # how many tokens it has was told by the header
                raise ImageError(f"{what} is damaged (its header says {file.size}, its pixels {picture.size})")
            _require_cheap(decoding_bytes(file, picture), picture.size, what)
            picture.load()
            return _rgb(picture)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they stumble over: struct.error, KeyError, zlib.error, …
        raise ImageError(f"{what} is damaged or truncated ({error}); get it again") from None


def picture_size(data: bytes, name: str = "") -> tuple[int, int]:
    """Width and height in pixels as the file says; nothing is decoded.

    Raises:
        ImageError: as `decode_image` has it, as far as the header shows.
    """
    return _looked_at(data, name or "the picture").size


def _looked_at(data: bytes, what: str) -> PictureFile:
    """Only headers are read so far: a bomb is refused without the memory it asks for."""
    if len(data) > MAX_BYTES:
        raise ImageError(f"{what} has {len(data) >> 20} MiB; at most {MAX_BYTES >> 20} MiB are read, scale it down")
    try:
        file = picture_file(data)
    except ImageError as error:
        raise ImageError(f"{what} {error}") from None
    if file is None:
        raise ImageError(f"{what} is no picture this version reads ({', '.join(FORMATS)}); convert it")
    _require_size(file.size, what)
    _require_cheap(file.decoder_bytes, file.size, what)  # some decoders allocate as soon as they are opened
    return file


def _require_size(size: tuple[int, int], what: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{what} is {width}×{height}; at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a side "
            "are decoded, scale it down"
        )


def _require_cheap(needed: int, size: tuple[int, int], what: str) -> None:
    if needed > MAX_DECODER_BYTES:
        raise ImageError(
            f"{what} would need {needed >> 20:,} MiB to be decoded, beside {size[0] * size[1] * 4 >> 20:,} MiB for its "
            f"pixels; at most {MAX_DECODER_BYTES >> 20} MiB are spent on that: scale it down, or save it as PNG or "
            "plain JPEG"
        )


def decoding_bytes(file: PictureFile, picture: Image.Image) -> int:
    """What decoding takes beside the pixels as RGB: the decoder's own memory, the file as it is given to it, and the
    pixels before they are RGB."""
    before = 0 if picture.mode == "RGB" else picture.width * picture.height * _PIXEL_BYTES.get(picture.mode, 4)
    return file.decoder_bytes + len(file.data) + before


def _rgb(picture: Image.Image) -> Image.Image:
    """In pieces, so that a picture is in memory twice at most; what is RGB already leaves its decoder uncopied."""
    if picture.mode == "RGB":
        return picture._new(picture.im)
    rgb = Image.new("RGB", picture.size)
    for top in range(0, picture.height, _ROWS_AT_ONCE):
        rows = picture.crop((0, top, picture.width, min(top + _ROWS_AT_ONCE, picture.height)))
        rgb.paste(_converted(rows), (0, top))
    return rgb


def _converted(rows: Image.Image) -> Image.Image:
    if rows.mode in _SIXTEEN_BIT or rows.mode == "I":
        high_byte = (np.asarray(rows).astype(np.int64).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    return rows.convert("RGB")


def read_picture(path: Path) -> bytes:
    """The encoded picture in that file, not yet looked at.

    Raises:
        ImageError: no file, one that cannot be read, or one larger than MAX_BYTES.
    """
    try:
        if require_regular(path).st_size > MAX_BYTES:
            raise ImageError(f"{path} has more than {MAX_BYTES >> 20} MiB; scale the picture down")
        return read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}; give a PNG or JPEG file") from None
