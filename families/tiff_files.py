"""A TIFF file, looked at before a decoder sees it: its first directory, with the tags that make the picture.

A directory may name any bytes of the file any number of times, as tiles or as text. It is written anew with what the
picture needs, each tag of a bounded length.
"""

from dataclasses import dataclass
from math import prod
from struct import pack, unpack_from

from vlm_trt.bundle.errors import ImageError

# Bytes of a value by its type's number. Source: TIFF 6.0, section 2.
_TYPES = {1: ("B", 1), 2: ("B", 1), 3: ("H", 2), 4: ("I", 4), 5: ("II", 8), 6: ("b", 1), 7: ("B", 1), 8: ("h", 2)}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _ROWS = 256, 257, 258, 259, 262, 277, 278
_PLANAR, _TILE_WIDTH, _TILE_HEIGHT, _ORIENTATION = 284, 322, 323, 274
_OFFSETS = (273, 279, 324, 325)  # of strips and tiles, and their lengths
_COLOURS, _JPEG_TABLES = 320, 347
_SINGLE = (_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _ROWS, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT)
# Tag → how many values it may have.
_KEPT = {
    **dict.fromkeys((*_SINGLE, _ORIENTATION, 266, 292, 293, 317, 332, 531), 1),
    **dict.fromkeys((_BITS, 338, 339, 529, 530, 532), 16),
    **dict.fromkeys(_OFFSETS, 1 << 18),
    _COLOURS: 3 << 16,
    _JPEG_TABLES: 1 << 16,
}
# What decoders of these allocate is known; others bring windows and dictionaries of their own choosing.
_COMPRESSIONS = {1: "none", 2: "CCITT", 3: "G3", 4: "G4", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits",
                 32946: "deflate"}  # fmt: skip


@dataclass(frozen=True)
class TiffParts:
    data: bytes
    size: tuple[int, int]
    decoder_bytes: int


def tiff_parts(data: bytes) -> TiffParts:
    """The first picture of a TIFF file.

    Raises:
        ImageError: as `picture_file` has it.
        struct.error: it ends too soon.
    """
    order = "<" if data[:2] == b"II" else ">"
    start = unpack_from(order + "I", data, 4)[0]
    count = unpack_from(order + "H", data, start)[0]
    entries: dict[int, bytes] = {}
    values: dict[int, tuple[int, ...]] = {}
    for at in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind, number, offset = unpack_from(order + "HHII", data, at)
        if tag not in _KEPT:
            continue
        if tag in entries or number > _KEPT[tag] or kind not in _TYPES:
            raise ImageError(f"is damaged (its tag {tag} stands there twice, or with {number} values); get it again")
        entries[tag] = data[at : at + 12]
        letter, width = _TYPES[kind]
        place = at + 8 if number * width <= 4 else offset
        if tag not in (*_OFFSETS, _COLOURS, _JPEG_TABLES):
            values[tag] = unpack_from(f"{order}{number}{letter}" if len(letter) == 1 else f"{order}2I", data, place)
        elif place + number * width > len(data):
            raise ImageError("is damaged or truncated (a tag leads beyond its end); get it again")
    directory = pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    even = bytes(len(data) % 2)
    whole = b"".join((data[:4], pack(order + "I", len(data) + len(even)), memoryview(data)[8:], even, directory))
    one = {tag: values[tag][0] for tag in values if values[tag]}
    if _WIDTH not in one or _HEIGHT not in one:
        raise ImageError("is damaged (it does not tell its size); get it again")
    if (compression := one.get(_COMPRESSION, 1)) not in _COMPRESSIONS:
        raise ImageError(
            f"is a TIFF of compression {compression}, which is not read; save it uncompressed, or with LZW or deflate"
        )
    return TiffParts(whole, (one[_WIDTH], one[_HEIGHT]), _decoder_bytes(one, values.get(_BITS, (1,))))


def _decoder_bytes(one: dict[int, int], bits: tuple[int, ...]) -> int:
    """A strip or tile is decoded whole, and as colours of four bytes where JPEG packs them; a turned picture is copied.

    An uncompressed one is read row by row.
    """
    wide, high = one[_WIDTH], one[_HEIGHT]
    turned = 4 * wide * high if one.get(_ORIENTATION, 1) != 1 else 0
    if one.get(_COMPRESSION, 1) == 1:
        return turned
    segment = (wide, min(one.get(_ROWS, high), high))
    if _TILE_WIDTH in one or _TILE_HEIGHT in one:
        segment = (one.get(_TILE_WIDTH, wide), one.get(_TILE_HEIGHT, high))
    samples = one.get(_SAMPLES, 1)
    depth = (sum(bits) if len(bits) > 1 else bits[0] * samples) / 8 if bits else samples
    packed = 8 if one.get(_PHOTOMETRIC) == 6 else 0
    return turned + int(prod(segment) * (depth + packed))
