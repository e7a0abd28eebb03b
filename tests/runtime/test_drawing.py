"""Boxes and labels: visible, readable, inside the picture, and no empty boxes for Chinese."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from runtime.drawing import PALETTE, _covered, _font, _shown, draw_regions, luminance


@dataclass(frozen=True)
class Spot:
    name: str
    points: tuple[tuple[float, float], ...]


def changed(before: Image.Image, after: Image.Image) -> np.ndarray:
    return (np.asarray(before) != np.asarray(after)).any(axis=2)


@pytest.mark.parametrize("background", ["white", "black", *PALETTE])
def test_a_box_and_its_label_are_seen_on_any_background(background: str | tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (400, 300), background)
    drawn = draw_regions(picture, [Spot("red circle", ((100, 100), (200, 200)))])
    mask = changed(picture, drawn)
    assert mask[195:205, 100:200].any(axis=0).all() and mask[120:200, 95:105].any(axis=1).all()
    assert mask[60:99, 100:180].sum() > 200  # the label above
    assert not mask[110:190, 110:190].any() and not mask[230:].any()  # nothing elsewhere
    assert not changed(picture, Image.new("RGB", (400, 300), background)).any()  # the input is as it was


@pytest.mark.parametrize("colour", PALETTE)
def test_a_labels_text_has_contrast(colour: tuple[int, int, int]) -> None:
    text = 0.0 if luminance(colour) > 0.18 else 1.0
    lighter, darker = sorted((luminance(colour), text), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5  # WCAG AA


def test_every_gb2312_character_has_a_glyph() -> None:
    font = _font(24)
    missing = bytes(font.getmask("\U0010fffd"))
    for high in range(0xB0, 0xF8):
        for low in range(0xA1, 0xFF):
            text = bytes((high, low)).decode("gb2312", "ignore")
            if text:
                assert ord(text) in _covered(), text
                assert bytes(font.getmask(text)) != missing, text


def test_chinese_labels_are_not_empty_boxes() -> None:
    picture = Image.new("RGB", (300, 200), "white")
    one, other = (
        np.asarray(draw_regions(picture, [Spot(name, ((50, 80), (200, 150)))])) for name in ("红色的圆", "蓝色的星")
    )
    assert (one != other).any()


def test_a_character_the_font_lacks_is_named() -> None:
    assert _shown("a😀") == "a[U+1F600]"
    assert _shown("two\nlines ") == "two lines"


@pytest.mark.parametrize("size", [(1, 1), (20, 20), (30, 400), (3000, 2000)])
@pytest.mark.parametrize(
    "points", [((0, 0), (1, 1)), ((-0.5, -0.5), (1.5, 1.5)), ((0.9, 0.9), (1, 1)), ((1, 1), (0, 0))]
)
def test_edges_and_sizes(size: tuple[int, int], points: tuple[tuple[float, float], ...]) -> None:
    picture = Image.new("RGB", size, "grey")
    scaled = tuple((x * size[0], y * size[1]) for x, y in points)
    drawn = draw_regions(picture, [Spot("label 标签", scaled)])
    assert drawn.size == size
    assert changed(picture, drawn).any()


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    picture = Image.new("RGB", (600, 400), "white")
    spots = [Spot(name, ((100, 100), (300, 200))) for name in ("one", "two", "three")]
    together = np.asarray(draw_regions(picture, spots))
    for index, _ in enumerate(spots):
        plate = (together == np.array(PALETTE[index])).all(axis=2)
        assert plate.sum() > 150


def test_a_quad_is_drawn_along_its_corners_and_a_name_has_one_colour() -> None:
    picture = Image.new("RGB", (200, 200), "white")
    drawn = draw_regions(picture, [Spot("", ((50, 20), (180, 60), (150, 180), (20, 140)))])
    mask = changed(picture, drawn)
    assert mask[20, 50] and mask[60, 180] and mask[180, 150] and not mask[0:15].any() and not mask[100, 100]


def test_the_font_is_the_shipped_one() -> None:
    assert isinstance(_font(20), ImageFont.FreeTypeFont)
    assert ImageDraw.Draw(Image.new("RGB", (9, 9))).textlength("红", font=_font(20)) >= 18
