"""Picture files, looked at before a decoder sees them: which format, what size, what decoding costs.

What the decoder gets is the first picture and nothing else. Comments, metadata, thumbnails and further frames are left
out: none of it changes a pixel, and decoders read it in ways that cost gigabytes or hours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import error as StructError
from struct import unpack_from

from vlm_trt.bundle.errors import ImageError
from vlm_trt.families.tiff_files import tiff_parts

# Comment blocks of a GIF before its picture, of at most 255 bytes each.
_MOST_GIF_BLOCKS = 65_536


@dataclass(frozen=True)
class PictureFile:
    """One picture, as a decoder is given it."""

    kind: str  # Pillow's name of the format
    data: bytes
    size: tuple[int, int]  # width and height, pixels
    decoder_bytes: int  # what the decoder allocates beside the pixels it returns; source: tests/families measure it


def picture_file(data: bytes) -> PictureFile | None:
    """The first picture of an encoded file; None if it is of no format that is read.

    Raises:
        ImageError: it is damaged or truncated, or of a kind within its format that is not read. The sentence lacks the
            file's name at its beginning.
    """
    for magic, look in _FORMATS:
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            try:
                return look(data)
            except (StructError, IndexError):
                raise ImageError("is damaged or truncated (its header ends too soon); get it again") from None
    return None


def _png(data: bytes) -> PictureFile:
    """Header, palette and pixels: a decoder counts the rest among its own."""
    size: tuple[int, int] = unpack_from(">II", data, 16)
    view, kept, at = memoryview(data), [data[:8]], 8
    while at + 8 <= len(data):
        length, kind = unpack_from(">I4s", data, at)
        stop = at + 12 + length
        if at == 8 or kind in (b"PLTE", b"IDAT", b"IEND"):
            kept.append(view[at:stop])  # type: ignore[arg-type]
        at = stop
    return PictureFile("PNG", b"".join(kept), size, 0)


def _jpeg(data: bytes) -> PictureFile:
    """Without EXIF, colour profile, thumbnails and comments; JFIF's and Adobe's marks, which tell the colours, stay.

    A picture of several scans is held as coefficients of 16 bits until the last.
    """
    view, kept, seen, frame = memoryview(data), [data[:2]], set(), None
    for marker, at, stop in _jpeg_segments(data):
        if marker == 0xDA:
            kept.append(view[at:])  # type: ignore[arg-type]
            if frame is None:
                break
            progressive, size, coefficients, components = frame
            many = progressive or data[at + 4] < components
            return PictureFile("JPEG", b"".join(kept), size, 2 * coefficients if many else 0)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            frame = (marker not in (0xC0, 0xC1), *_jpeg_frame(data, at))
        if marker in (0xE0, 0xEE) and marker not in seen:
            seen.add(marker)
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            continue
        kept.append(view[at:stop])  # type: ignore[arg-type]
    raise ImageError("is damaged or truncated (it ends before its pixels); get it again")


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, beginning and end of each segment up to the first scan."""
    at = 2
    while at < len(data):
        while data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):  # fill bytes, as decoders skip them
            at += 1
        marker = data[at + 1]
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        stop = at + 2 + (0 if alone else unpack_from(">H", data, at + 2)[0])
        yield marker, at, stop
        at = stop


def _jpeg_frame(data: bytes, at: int) -> tuple[tuple[int, int], int, int]:
    """Size, coefficients of all components, number of components."""
    height, width, components = unpack_from(">HHB", data, at + 5)
    factors = [divmod(data[at + 11 + 3 * i], 16) for i in range(components)]
    across, down = (max((max(1, one[axis]) for one in factors), default=1) for axis in (0, 1))
    blocks = -(-width // (8 * across)) * -(-height // (8 * down))
    return (width, height), sum(64 * blocks * h * v for h, v in factors), components


def _webp(data: bytes) -> PictureFile:
    """Pillow decodes by way of two canvases and a copy, all of four bytes a pixel."""
    kind = data[12:16]
    if kind == b"VP8X":
        wide, high = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = unpack_from("<I", data, 21)[0]
        wide, high = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        wide, high = (side & 0x3FFF for side in unpack_from("<HH", data, 26))
    return PictureFile("WEBP", data, (wide, high), 12 * wide * high)


def _gif(data: bytes) -> PictureFile:
    """Up to its first frame, without comments; the control block before the frame stays."""
    wide, high, flags = unpack_from("<HHB", data, 6)
    at = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    head, control, blocks = data[:at], b"", 0
    while data[at] == 0x21:
        start, label = at, data[at + 1]
        at += 2
        while data[at]:
            at += 1 + data[at]
            blocks += 1
            if blocks > _MOST_GIF_BLOCKS:
                raise ImageError("has more comments than picture; save it without them")
        at += 1
        control = data[start:at] if label == 0xF9 else control
    if data[at] != 0x2C:
        raise ImageError("is damaged or truncated (it has no frame); get it again")
    left, top, width, height = unpack_from("<HHHH", data, at + 1)
    size = max(wide, left + width), max(high, top + height)
    return PictureFile("GIF", b"".join((head, control, memoryview(data)[at:])), size, 0)


def _bmp(data: bytes) -> PictureFile:
    """Run lengths are decoded into a growing buffer of one byte a pixel, and a copy of that."""
    if unpack_from("<I", data, 14)[0] == 12:
        wide, high, packed = *unpack_from("<HH", data, 18), False
    else:
        wide, high = (abs(side) for side in unpack_from("<ii", data, 18))
        packed = unpack_from("<I", data, 30)[0] in (1, 2)
    return PictureFile("BMP", data, (wide, high), 4 * wide * high if packed else 0)


def _tiff(data: bytes) -> PictureFile:
    parts = tiff_parts(data)
    return PictureFile("TIFF", parts.data, parts.size, parts.decoder_bytes)


_FORMATS: tuple[tuple[bytes, Callable[[bytes], PictureFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"\xff\xd8\xff", _jpeg),
    (b"RIFF", _webp),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"BM", _bmp),
    (b"II*\x00", _tiff),
    (b"MM\x00*", _tiff),
)
