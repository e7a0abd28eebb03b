"""Pictures from anywhere: what is decoded, and what is refused before it costs memory."""

import contextlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.conftest import ROOT
from vlm_trt.bundle.errors import ImageError
from vlm_trt.families.images import MAX_BYTES, MAX_DECODER_BYTES, decode_image, picture_size, read_picture
from vlm_trt.families.picture_files import picture_file


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def zeros_png(width: int, height: int) -> bytes:
    """A grey PNG of zeros, written row by row: small on disk, huge decoded."""
    packer, rows = zlib.compressobj(9), bytearray()
    for _ in range(height):
        rows += packer.compress(bytes(width + 1))
    rows += packer.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(rows)) + chunk(b"IEND", b"")


RED = Image.new("RGB", (8, 6), (200, 10, 10))


MEASURED = """
import gc, io, json, sys
from pathlib import Path
from PIL import Image
from vlm_trt.bundle.errors import ImageError
from vlm_trt.families.images import decode_image, decoding_bytes
from vlm_trt.families.picture_files import picture_file

def kib(name):
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

for path in sorted(Path(sys.argv[1]).iterdir()):
    data, said, allowed = path.read_bytes(), '', 0
    gc.collect()
    open('/proc/self/clear_refs', 'w').write('5')  # the peak begins anew
    before = kib('VmRSS:')
    try:
        picture = decode_image(data, path.name)
        grown = kib('VmHWM:') - before
        file = picture_file(data)
        allowed = picture.width * picture.height * 4 + decoding_bytes(file, Image.open(io.BytesIO(file.data)))
        del picture, file
    except ImageError as error:
        said, grown = str(error), kib('VmHWM:') - before
    print(json.dumps([path.name, grown / 1024, allowed / 2**20, said]))
"""


def measured(pictures: dict[str, bytes], folder: Path) -> dict[str, tuple[float, float, str]]:
    """Name → MiB that decoding took at its peak, MiB that it may take, what was refused.

    In a process of its own, since Pillow's memory is not Python's.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("reads and clears the peak in /proc/self, which only Linux has")
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder)],
        cwd=ROOT, capture_output=True, check=True, text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},  # what is freed is given back, and counts anew
    )  # fmt: skip
    return {name: (grown, allowed, said) for name, grown, allowed, said in map(json.loads, done.stdout.splitlines())}


def flat(mode: str, kind: str, **options: object) -> bytes:
    """Four megapixels: small to make and to store, large enough to be seen."""
    return encoded(Image.new(mode, (2048, 2048)), kind, **options)


def run_lengths(side: int) -> bytes:
    """A BMP of runs of equal pixels."""
    row = b"".join(bytes((min(255, side - at), 7)) for at in range(0, side, 255)) + b"\0\0"
    body, start = row * side + b"\0\1", 14 + 40 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + bytes(1024) + body


ONE_STRIP = {278: 1 << 20}
LARGE: dict[str, Callable[[], bytes]] = {
    "rgb.png": lambda: flat("RGB", "PNG"),
    "rgba.png": lambda: flat("RGBA", "PNG"),
    "sixteen.png": lambda: encoded(Image.fromarray(np.zeros((2048, 2048), np.uint16))),
    "palette.gif": lambda: flat("P", "GIF"),
    "baseline.jpg": lambda: flat("RGB", "JPEG"),
    "progressive.jpg": lambda: flat("RGB", "JPEG", progressive=True, subsampling=0),
    "cmyk.jpg": lambda: flat("CMYK", "JPEG", progressive=True),
    "lossy.webp": lambda: flat("RGB", "WEBP", method=0),
    "lossless.webp": lambda: flat("RGBA", "WEBP", method=0, lossless=True, quality=0, exact=True),
    "plain.bmp": lambda: flat("RGB", "BMP"),
    "runs.bmp": lambda: run_lengths(2048),
    "plain.tif": lambda: flat("RGB", "TIFF"),
    "deflate.tif": lambda: flat("RGBA", "TIFF", compression="tiff_adobe_deflate", tiffinfo=ONE_STRIP),
    "lzw.tif": lambda: flat("RGB", "TIFF", compression="tiff_lzw", tiffinfo=ONE_STRIP),
    "packbits.tif": lambda: flat("RGB", "TIFF", compression="packbits", tiffinfo=ONE_STRIP),
    "jpeg.tif": lambda: flat("RGB", "TIFF", compression="jpeg", tiffinfo=ONE_STRIP),
    "float.tif": lambda: flat("F", "TIFF", compression="tiff_lzw", tiffinfo=ONE_STRIP),
    "fax.tif": lambda: flat("1", "TIFF", compression="group4", tiffinfo=ONE_STRIP),
    "turned.tif": lambda: flat("RGB", "TIFF", compression="tiff_lzw", tiffinfo={**ONE_STRIP, 274: 6}),
}


def tiff(*entries: tuple[int, int, int, int], body: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: tag, type, count, value or offset; the body stands at 8."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + directory


def small_tiff(*more: tuple[int, int, int, int], compression: int = 5, body: bytes = bytes(64)) -> bytes:
    """64×64 and grey, with further tags."""
    own = [(256, 4, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    return tiff(*sorted([*own, *more]), body=body)


def webp_header(width: int, height: int) -> bytes:
    bits = struct.pack("<I", (width - 1) | (height - 1) << 14)
    return b"RIFF" + struct.pack("<I", 100) + b"WEBPVP8L" + struct.pack("<I", 80) + b"\x2f" + bits + bytes(75)


def exif_of(entries: int, payload: int) -> bytes:
    """A JPEG whose EXIF names the same megabytes again and again."""
    directory = b"".join(struct.pack("<HHII", 0x9000 + at, 1, payload, 8) for at in range(entries))
    exif = (
        b"II*\0" + struct.pack("<I", 8 + payload) + bytes(payload) + struct.pack("<H", entries) + directory + bytes(4)
    )
    cut = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(one) + 8) + b"Exif\0\0" + one for one in cut)
    return b"\xff\xd8" + segments + encoded(RED, "JPEG")[2:]


TILE = ((322, 4, 1, 26_720), (323, 4, 1, 26_720), (324, 4, 1, 8), (325, 4, 1, 64))
BOMBS: dict[str, tuple[bytes, str]] = {
    "header.png": (zeros_png(12_000, 12_000), "is 12000×12000; at most 64 megapixels and 32768 pixels a side are"),
    "tile.tif": (small_tiff(*TILE), "tile.tif would need 680 MiB to be decoded, beside 0 MiB for its pixels; at most"),
    "strip.tif": (
        tiff((256, 4, 1, 8000), (257, 4, 1, 8000), (258, 3, 1, 16), (259, 3, 1, 5), (262, 3, 1, 2), (277, 3, 1, 4)),
        "strip.tif is damaged|strip.tif would need",
    ),
    "large.webp": (
        webp_header(3900, 16_383),
        "large.webp would need 731 MiB to be decoded, beside 243 MiB for its pixels; at most 288 MiB",
    ),
    "huge.webp": (webp_header(16_383, 16_383), "is 16383×16383; at most 64 megapixels"),
    "lzma.tif": (small_tiff((273, 4, 1, 8), compression=34925), "is a TIFF of compression 34925, which is not read"),
    "offsets.tif": (small_tiff((273, 4, 1 << 24, 8)), "its tag 273 stands there twice, or with 16777216 values"),
}
# Small pictures that name the same megabytes a thousand times, beside their pixels.
STUFFED = {
    "exif.jpg": lambda: exif_of(1000, 4 << 20),
    "tags.tif": lambda: tiff(
        *[(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8), (279, 4, 1, 64)],
        *[(40_000 + at, 1, 4 << 20, 8) for at in range(1000)],
        body=bytes(4 << 20),
    ),
}


def test_decoding_takes_the_memory_that_was_foretold_and_a_bomb_none(tmp_path: Path) -> None:
    """Every format, and what its decoder could be made to allocate: at most 12 MiB more than what is compared with
    MAX_DECODER_BYTES, so below 300 MiB."""
    assert MAX_DECODER_BYTES + (12 << 20) <= 300 << 20
    pictures = {name: make() for name, make in {**LARGE, **STUFFED}.items()}
    found = measured(pictures | {name: data for name, (data, _) in BOMBS.items()}, tmp_path)
    for name in LARGE:
        grown, allowed, said = found[name]
        assert not said and grown <= allowed + 12, f"{name}: {grown:.0f} MiB of {allowed:.0f} {said}"
        assert grown > 8, f"{name}: nothing was measured"
    for name in STUFFED:
        grown, _, said = found[name]
        assert not said and grown < 24, f"{name}: {grown:.0f} MiB {said}"
    for name, (_, sentence) in BOMBS.items():
        grown, _, said = found[name]
        assert re.search(sentence, said) and grown < 8, f"{name}: {grown:.0f} MiB, {said}"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_what_is_no_pixel_changes_none(kind: str) -> None:
    """Metadata of every sort is left out before decoding, and the decoder gives the same picture."""
    exif = Image.Exif()
    exif[0x010E] = "a description"
    options: dict[str, object] = {"exif": exif, "icc_profile": bytes(3000), "comment": b"c" * 3000}
    if kind == "PNG":
        options["pnginfo"] = text = PngInfo()
        text.add_text("Comment", "t" * 3000, zip=True)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))
    picture = noise.convert("P") if kind in ("PNG", "GIF") else noise
    data = encoded(picture, kind, transparency=7, **options) if kind == "PNG" else encoded(picture, kind, **options)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data).tobytes() == expected.tobytes()
    given = picture_file(data)
    assert given is not None and given.size == (40, 40)
    assert kind in ("WEBP", "TIFF") or (b"ccc" not in given.data and b"iCCP" not in given.data)


def test_a_frame_smaller_than_its_canvas_stands_where_it_stood() -> None:
    """A GIF whose first frame fills a corner, with a control block that makes the rest transparent."""
    data = bytearray(encoded(RED.convert("P"), "GIF", transparency=0))
    data[6:10] = struct.pack("<HH", 20, 20)
    expected = Image.open(io.BytesIO(bytes(data))).convert("RGB")
    assert expected.size == (20, 20) and decode_image(bytes(data)).tobytes() == expected.tobytes()


def test_the_first_of_several_pictures_in_a_jpeg_counts() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert decode_image(data).getpixel((3, 3)) == Image.open(io.BytesIO(data)).convert("RGB").getpixel((3, 3))


def test_a_comment_longer_than_the_picture_is_refused() -> None:
    """Joining them takes hours: each block makes a copy of all before it."""
    data = encoded(RED.convert("P"), "GIF")
    at = 13 + (3 << (data[10] & 7) + 1)
    stuffed = data[:at] + b"\x21\xfe" + b"\x01c" * 70_000 + b"\0" + data[at:]
    with pytest.raises(ImageError, match="a.gif has more comments than picture; save it without them"):
        decode_image(stuffed, "a.gif")


def test_a_size_is_told_without_decoding() -> None:
    assert picture_size(zeros_png(8000, 4000)) == (8000, 4000)
    with pytest.raises(ImageError, match="b.png is 12000×12000; at most 64 megapixels"):
        picture_size(zeros_png(12_000, 12_000), "b.png")
    with pytest.raises(ImageError, match="no picture this version reads"):
        picture_size(b"")


def test_a_path_that_cannot_be_one_is_a_sentence() -> None:
    with pytest.raises(ImageError, match="cannot be read: its name holds a NUL character; give a PNG or JPEG file"):
        read_picture(Path("a\0b.png"))


def test_a_strip_is_refused() -> None:
    with pytest.raises(ImageError, match=r"1×60000; at most .* 32768 pixels a side"):
        decode_image(zeros_png(1, 60_000))


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(ImageError, match="at most 64 MiB are read, scale it down"):
        decode_image(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_truncated_picture_is_refused(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    assert decode_image(data).size == (64, 64)
    with pytest.raises(ImageError, match="damaged or truncated|no picture this version reads"):
        decode_image(data[: len(data) // 2], "half")


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_no_bytes_crash_it(data: bytes) -> None:
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\x00"):
        with pytest.raises(ImageError):
            decode_image(start + data)


KINDS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
WHOLE = {kind: encoded(RED.resize((40, 40)), kind) for kind in KINDS}


@given(st.sampled_from(KINDS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=500)
def test_a_damaged_picture_is_decoded_or_refused(kind: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(WHOLE[kind])
    for at, value in damage:
        data[at % len(data)] = value
    with contextlib.suppress(ImageError):
        assert decode_image(bytes(data)).mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"no picture this version reads \(PNG, JPEG"):
        decode_image(data)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "CMYK", "YCbCr"])
def test_modes_are_converted_as_the_original_does(mode: str) -> None:
    picture = RED.convert(mode)
    kind = "PNG" if mode in ("RGBA", "LA", "P", "1", "L") else "JPEG" if mode == "CMYK" else "TIFF"
    data = encoded(picture, kind)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data).tobytes() == expected.tobytes()


def test_alpha_is_dropped_and_not_blended() -> None:
    picture = Image.new("RGBA", (2, 2), (10, 200, 30, 0))
    assert decode_image(encoded(picture)).getpixel((0, 0)) == (10, 200, 30)


def test_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90°
    assert decode_image(encoded(RED, "JPEG", exif=exif)).size == RED.size


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert decode_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    grey = np.asarray(decode_image(encoded(Image.fromarray(values))))
    assert grey[0, :, 0].tolist() == [0, 1, 128, 255]


def test_no_warning_escapes_and_none_is_silenced_for_others() -> None:
    large = zeros_png(12_000, 12_000)  # Pillow warns of it

    def refused(_: int) -> bool:
        with pytest.raises(ImageError):
            decode_image(large)
        return True

    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(refused, range(400)))
    assert list(warnings.filters) == before


def test_a_single_pixel_is_a_picture() -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1)))).size == (1, 1)
