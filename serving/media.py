"""Pictures of a request: what `image_url` holds → bytes that are worth decoding. Only headers are read here."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm_trt.bundle.errors import ImageError
from vlm_trt.families.images import MAX_DECODER_BYTES, decode_image
from vlm_trt.families.picture_files import picture_file
from vlm_trt.serving.addresses import AddressError
from vlm_trt.serving.errors import ApiError, refused
from vlm_trt.serving.settings import PictureLimits

# By Pillow's names. No TIFF here: it holds more kinds of pictures than anybody sends.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_NAMES = "JPEG, PNG, WebP, GIF or BMP"
# What the file is called does not count: its first bytes tell what it is, and clients often call a PNG a JPEG.
_DATA_URL = re.compile(r"data:image/[a-z0-9.+-]{1,64};base64,", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """One picture of a request, looked at."""

    at: str  # the field it came in
    data: bytes = field(repr=False)
    pixels: int


def is_data(url: str) -> bool:
    """Whether the URL is the picture itself; any other is fetched, if that is allowed."""
    return url[:5].lower() == "data:"


def from_data_url(url: str, at: str, limits: PictureLimits) -> Picture:
    """The picture that a data: URL holds.

    Raises:
        ApiError: it is none, or is not allowed.
    """
    begin = _DATA_URL.match(url)
    if begin is None:
        raise _refused(at, "is no data URL of a picture; send data:image/png;base64,… with a " + _NAMES)
    encoded = memoryview(url.encode("ascii", "replace"))[begin.end() :]
    if len(encoded) > 4 * -(-limits.bytes // 3):
        raise _too_large(at, limits)
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise _refused(
            at, "holds what is no base64; encode the picture with the letters A-Z a-z 0-9 + / and = at the end"
        ) from None
    return looked_at(data, at, limits)


def looked_at(data: bytes, at: str, limits: PictureLimits) -> Picture:
    """The picture, if its header says that it may be decoded.

    Raises:
        ApiError: another format, damaged as far as can be seen, too large, or too costly.
    """
    if len(data) > limits.bytes:
        raise _too_large(at, limits)
    try:
        file = picture_file(data)
    except ImageError as error:  # a sentence of ours, without its beginning
        raise _refused(at, f"{error}") from None
    if file is None or file.kind not in FORMATS:
        raise _refused(at, f"is no {_NAMES}; convert it")
    width, height = file.size
    if min(file.size) < 1:
        raise _refused(at, f"is a picture of {width}×{height} pixels; send one that shows something")
    if width * height > limits.pixels or max(file.size) > limits.side:
        raise _refused(
            at,
            f"is a picture of {width}×{height} pixels; at most {limits.pixels // 1_000_000} megapixels and "
            f"{limits.side:,} pixels a side are taken: scale it down",
        )
    if max(file.size) > limits.aspect * min(file.size):
        raise _refused(at, f"is a picture of {width}×{height} pixels; at most {limits.aspect}:1 is taken: cut it")
    if file.decoder_bytes > MAX_DECODER_BYTES:
        raise _refused(at, "takes too much memory to be decoded; scale it down, or save it as PNG or plain JPEG")
    return Picture(at, data, width * height)


def which_is_bad(pictures: Sequence[Picture]) -> ApiError:
    """What to say when one of them could not be decoded: which one. They are decoded again to find it."""
    for picture in pictures:
        try:
            decode_image(picture.data)
        except ImageError:  # its text holds the decoder's
            return _refused(picture.at, "is a picture that is damaged, truncated or too costly; save it anew")
    return ApiError(400, "a picture cannot be used; save it anew", "invalid_image", param="messages")


def not_fetched(at: str, error: AddressError) -> ApiError:
    return refused(at, str(error), "invalid_image_url")


def _refused(at: str, what: str) -> ApiError:
    return refused(at, what, "invalid_image")


def _too_large(at: str, limits: PictureLimits) -> ApiError:
    return _refused(at, f"has more than {limits.bytes >> 20} MiB; scale the picture down")
