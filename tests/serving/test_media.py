"""What `image_url` may hold, as a data URL: headers decide, before anything is decoded."""

import base64
from dataclasses import replace

import pytest

from tests.serving.pictures import animated, data_url, encoded, png_of
from vlm_trt.serving.errors import ApiError
from vlm_trt.serving.media import Picture, from_data_url, which_is_bad
from vlm_trt.serving.settings import PictureLimits

AT = "messages[0].content[1].image_url.url"
LIMITS = PictureLimits()


def refusal(url: str, limits: PictureLimits = LIMITS) -> str:
    with pytest.raises(ApiError) as caught:
        from_data_url(url, AT, limits)
    assert caught.value.status == 400 and caught.value.param == AT and caught.value.code == "invalid_image"
    message = str(caught.value)
    assert message.startswith(AT) and "0x" not in message
    return message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_five_formats_are_taken(kind: str) -> None:
    data = encoded(kind)
    assert from_data_url(data_url(data, f"image/{kind.lower()}"), AT, LIMITS) == Picture(AT, data, 32 * 24)


def test_what_the_picture_is_called_does_not_count() -> None:
    """Clients call a PNG a JPEG all the time."""
    data = encoded("PNG")
    for called in ("image/jpeg", "image/jpg", "IMAGE/PNG", "image/x-ms-bmp"):
        assert from_data_url(data_url(data, called), AT, LIMITS).data == data


def test_of_an_animation_the_size_is_that_of_a_frame() -> None:
    assert from_data_url(data_url(animated(50), "image/gif"), AT, LIMITS).pixels == 256


@pytest.mark.parametrize(
    "url",
    [
        "data:", "data:,", "data:image/png", "data:image/png;base64", "data:image/png,abc",
        "data:text/html;base64,QUJD", "data:image/png;charset=utf-8;base64,QUJD",
        "data:application/octet-stream;base64,QUJD", "data:;base64,QUJD",
    ],
)  # fmt: skip
def test_what_is_no_data_url_of_a_picture_is_refused(url: str) -> None:
    assert "is no data URL of a picture" in refusal(url)


def test_base64_is_strict() -> None:
    written = base64.b64encode(encoded("JPEG")).decode()
    for wrong in (
        written[:40] + "\n" + written[40:], " " + written, written + " ", written[:-1] + "-", "_" + written[1:],
        written[:41], written + "=", "====", written + ("QUJD" if written.endswith("=") else "Q"),
        "%2B" + written, "ä" + written,
    ):  # fmt: skip
        assert "holds what is no base64" in refusal("data:image/png;base64," + wrong)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"<html>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0", b"8BPS" + bytes(50),
        b"\x00\x00\x01\x00" + bytes(50), b"II*\x00" + bytes(100), encoded("TIFF"), b"SIMPLE  =", b"GIF", b"BM",
    ],
)  # fmt: skip
def test_no_other_format_reaches_a_decoder(data: bytes) -> None:
    assert "convert it" in refusal(data_url(data)) or "its header ends too soon" in refusal(data_url(data))


@pytest.mark.parametrize(
    ("size", "why"),
    [
        ((50_000, 50_000), "at most 40 megapixels"),
        ((12_000, 12_000), "at most 40 megapixels"),
        ((1, 60_000), "16,384 pixels a side"),
        ((16_385, 100), "16,384 pixels a side"),
        ((201, 1), "at most 200:1"),
        ((40, 16_000), "at most 200:1"),
        ((0, 10), "send one that shows something"),
        ((10, 0), "send one that shows something"),
    ],
)
def test_the_header_is_believed_only_within_limits(size: tuple[int, int], why: str) -> None:
    assert why in refusal(data_url(png_of(*size)))


def test_the_edges_of_the_limits_are_allowed() -> None:
    for size in ((1, 1), (200, 1), (1, 200), (8_000, 5_000), (16_384, 2_000)):
        assert from_data_url(data_url(png_of(*size)), AT, LIMITS).pixels == size[0] * size[1]


def test_bytes_are_counted_before_they_are_decoded() -> None:
    data = encoded("BMP", (40, 40))
    limits = replace(LIMITS, bytes=len(data))
    assert from_data_url(data_url(data), AT, limits).data == data
    assert "has more than 0 MiB" in refusal(data_url(data + b"x"), limits)
    assert "has more than 20 MiB" in refusal(data_url(bytes((20 << 20) + 1)))


def test_a_header_that_ends_too_soon_is_a_sentence() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        assert "damaged or truncated" in refusal(data_url(encoded(kind)[:20]))


def test_the_bad_picture_among_several_is_named() -> None:
    good = encoded()
    pictures = [Picture("a", good, 1), Picture("b", encoded(size=(200, 200))[:-2000], 1), Picture("c", good, 1)]
    error = which_is_bad(pictures)
    assert error.param == "b" and "damaged, truncated or too costly" in str(error)
    assert which_is_bad(pictures[:1]).param == "messages"
