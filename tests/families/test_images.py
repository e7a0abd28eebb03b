"""Pictures from anywhere: what is decoded, and what is refused before it costs memory."""

import contextlib
import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import ROOT
from vlm_trt.bundle.errors import ImageError
from vlm_trt.families.images import MAX_BYTES, decode_image


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
import sys
from vlm_trt.families.images import decode_image
def peak():
    lines = open('/proc/self/status').read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))  # KiB
data = sys.stdin.buffer.read()
before = peak()
try:
    decode_image(data, sys.argv[1])
except Exception as error:
    print(error)
print(peak() - before)
"""


@pytest.mark.parametrize("side", [12_000, 6_000])
def test_a_bomb_is_refused_without_the_memory(side: int) -> None:
    """The peak of a process of its own, since Pillow's memory is not Python's: 412 MiB as RGB, and none of it taken.
    The smaller one is decoded, and its memory seen."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/status, which only Linux has")
    data = zeros_png(side, side)
    assert len(data) < 1 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "bomb.png"], cwd=ROOT, input=data, capture_output=True, check=True
    )
    *said, grown_kib = done.stdout.decode().splitlines()
    if side == 12_000:
        assert said == [
            "bomb.png is 12000×12000; at most 64 megapixels and 32768 pixels a side are decoded, scale it down"
        ]
        assert int(grown_kib) < 16 << 10
    else:
        assert said == [] and int(grown_kib) > 100 << 10


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
