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
from PIL import Image, UnidentifiedImageError

from vlm_trt.bundle.errors import ImageError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_BYTES = 64 << 20
MAX_PIXELS = 64_000_000
MAX_SIDE = 32_768
# Warning filters belong to the process: two threads that silence them at once would leave them silenced for good.
# One decoding at a time also bounds the memory that a server's pictures take.
_DECODING = threading.Lock()
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def decode_image(data: bytes, name: str = "") -> Image.Image:
    """The picture as 8-bit RGB.

    Args:
        data: an encoded picture, at most MAX_BYTES.
        name: named in errors.
    Raises:
        ImageError: unknown format, too large, truncated or damaged.
    """
    what = name or "the picture"
    if len(data) > MAX_BYTES:
        raise ImageError(f"{what} has {len(data) >> 20} MiB; at most {MAX_BYTES >> 20} MiB are read, scale it down")
    try:
        with _DECODING, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata; we check ourselves
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            _require_size(picture, what)
            picture.load()
            return _rgb(picture)
    except UnidentifiedImageError:
        raise ImageError(f"{what} is no picture this version reads ({', '.join(FORMATS)}); convert it") from None
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they stumble over: struct.error, KeyError, zlib.error, …
        raise ImageError(f"{what} is damaged or truncated ({error}); get it again") from None


def _require_size(picture: Image.Image, what: str) -> None:
    """Only the header is read so far: a bomb is refused without the memory it asks for."""
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{what} is {width}×{height}; at most {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} pixels a side "
            "are decoded, scale it down"
        )


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT or picture.mode == "I":
        high_byte = (np.asarray(picture).astype(np.int64).clip(0, 0xFFFF) >> 8).astype(np.uint8)
        return Image.fromarray(high_byte).convert("RGB")
    return picture.convert("RGB")


def read_picture(path: Path) -> bytes:
    """The encoded picture in that file, not yet looked at.

    Raises:
        ImageError: no file, one that cannot be read, or one larger than MAX_BYTES.
    """
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path} is no file; give a PNG or JPEG file")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path} has more than {MAX_BYTES >> 20} MiB; scale the picture down")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}; give a PNG or JPEG file") from None
