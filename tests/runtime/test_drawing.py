"""Boxes and labels: visible, readable, inside the picture, and no empty boxes for Chinese."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFont

from vlm_trt.runtime.drawing import PALETTE, _colour, _covered, _font, _plate, _shown, draw_regions, luminance


@dataclass(frozen=True)
class Spot:
    name: str
    points: tuple[tuple[float, float], ...]

    @property
    def kind(self) -> str:
        return {1: "point", 2: "box"}.get(len(self.points), "quad")


def changed(before: Image.Image, after: Image.Image) -> npt.NDArray[np.bool_]:
    """Which pixels differ, [height, width]."""
    differing: npt.NDArray[np.bool_] = np.not_equal(np.asarray(before), np.asarray(after)).any(axis=2)
    return differing


@pytest.mark.parametrize("background", ["white", "black", *PALETTE])
def test_a_box_and_its_label_are_seen_on_any_background(background: str | tuple[int, int, int]) -> None:
    picture = Image.new("RGB", (400, 300), background)
    drawn = draw_regions(picture, [Spot("red circle", ((100, 100), (200, 200)))])
    mask = changed(picture, drawn)
    assert mask[195:205, 100:200].any(axis=0).all() and mask[120:200, 95:105].any(axis=1).all()
    assert mask[60:99, 100:180].sum() > 200  # the label above
    assert not mask[110:190, 110:190].any() and not mask[230:].any()  # nothing elsewhere
    assert not changed(picture, Image.new("RGB", (400, 300), background)).any()  # the input is as it was


@pytest.mark.parametrize("index", range(30))
def test_a_labels_text_has_contrast(index: int) -> None:
    spots = [Spot(str(n), ((0, 0), (1, 1))) for n in range(index)]
    drawn = draw_regions(Image.new("RGB", (400, 400), "grey"), [*spots, Spot("红色", ((100, 300), (300, 390)))])
    pixels = np.asarray(drawn).reshape(-1, 3)
    assert (pixels == _colour(index)).all(axis=1).sum() > 300  # the plate
    plate = luminance(_colour(index))
    contrasts = [(max(plate, ink) + 0.05) / (min(plate, ink) + 0.05) for ink in (0.0, 1.0)]
    ink_value = (0, 255)[contrasts[1] > contrasts[0]]
    assert max(contrasts) >= 4.5  # WCAG AA
    label = np.asarray(drawn)[275:297, 101:140]
    assert (label == ink_value).all(axis=2).sum() > 20  # and the text is in that ink


def test_every_name_has_its_own_colour() -> None:
    colours = [_colour(index) for index in range(30)]
    apart = [sum(abs(x - y) for x, y in zip(a, b, strict=True)) for a in colours for b in colours if a is not b]
    assert min(apart) > 15
    drawn = np.asarray(
        draw_regions(
            Image.new("RGB", (200, 200)), [Spot("a", ((10, 50), (60, 90))), Spot("a", ((100, 120), (150, 180)))]
        )
    )
    assert (drawn[70, 10] == PALETTE[0]).all() and (drawn[150, 100] == PALETTE[0]).all()


def test_every_gb2312_character_has_a_glyph() -> None:
    font = _font(24)
    missing = bytes(font.getmask("\U0010fffd"))
    assert missing  # the font's mark for what it lacks is itself visible
    count = 0
    for high in range(0xA1, 0xF8):
        for low in range(0xA1, 0xFF):
            text = bytes((high, low)).decode("gb2312", "ignore")
            if text and text != "\u3000":  # the ideographic space
                count += 1
                assert ord(text) in _covered(), text
                glyph = font.getmask(text)
                assert glyph.getbbox() and bytes(glyph) != missing, text
    assert count == 7444  # 6,763 of them hanzi


@pytest.mark.parametrize(("composed", "plain"), [("ǎ", "a"), ("ǖ", "ü"), ("ǘ", "ü"), ("ǜ", "ü"), ("℃", "C")])
def test_a_composed_character_has_all_its_parts(composed: str, plain: str) -> None:
    more, fewer = (len(bytes(_font(48).getmask(text)).replace(b"\0", b"")) for text in (composed, plain))
    assert more > fewer  # inked pixels


def test_chinese_labels_are_not_empty_boxes() -> None:
    picture = Image.new("RGB", (300, 200), "white")
    one, other = (
        np.asarray(draw_regions(picture, [Spot(name, ((50, 80), (200, 150)))])) for name in ("红色的圆", "蓝色的星")
    )
    assert (one != other).any()


def test_a_character_the_font_lacks_is_named() -> None:
    assert _shown("a😀") == "a[U+1F600]"
    assert _shown("two\nlines ") == "two lines"
    assert _shown("x" * 100) == "x" * 59 + "…"


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


@pytest.mark.parametrize("x", [-50, 0, 100, 380, 399, 450])
@pytest.mark.parametrize("y", [-50, 0, 100, 280, 299, 350])
def test_a_label_lies_wholly_inside_the_picture(x: float, y: float) -> None:
    font = _font(12)
    place = Spot("a long name 标签", ((x, y), (x + 30, y + 30)))
    left, top, right, bottom = _plate((400, 300), place, place.name, font, [])
    assert left >= 0 and top >= 0 and right <= 399 and bottom <= 299
    assert right - left > font.getlength(place.name) and bottom - top >= 12  # and it is not cut


def test_a_name_wider_than_the_picture_ends_in_an_ellipsis() -> None:
    place = ((5.0, 40.0), (95.0, 95.0))
    picture = Image.new("RGB", (100, 100), "white")
    long = [np.asarray(draw_regions(picture, [Spot("w" * n, place)])) for n in (40, 50)]
    assert (long[0] == long[1]).all()  # both shortened to the same
    margin = long[0][:, 99]
    assert ((margin == 255).all(axis=1) | (margin == PALETTE[0]).all(axis=1)).all()  # no letter is cut by the edge


def test_a_huge_pictures_label_grows_with_it() -> None:
    small, huge = (Image.new("RGB", (side, side), "white") for side in (500, 5000))
    share = [
        changed(p, draw_regions(p, [Spot("标签", ((p.width * 0.3, p.width * 0.5), (p.width * 0.4, p.width * 0.6)))]))
        for p in (small, huge)
    ]
    assert share[1].mean() == pytest.approx(share[0].mean(), rel=0.2)


@pytest.mark.parametrize("name", ["", "  ", "\n"])
def test_an_empty_name_has_no_label(name: str) -> None:
    picture = Image.new("RGB", (200, 200), "white")
    mask = changed(picture, draw_regions(picture, [Spot(name, ((50, 60), (150, 150)))]))
    assert mask[60, 50] and not mask[:55].any() and not mask[70:140, 60:140].any()


def test_a_quad_beyond_the_edge_keeps_its_shape() -> None:
    picture = Image.new("RGB", (200, 200), "white")
    quad = Spot("", ((-1e9, -1e9), (100, 100), (200, 0), (1e9, -1e9)))
    mask = changed(picture, draw_regions(picture, [quad]))
    assert all(mask[n, n] and mask[n, 200 - n] for n in range(5, 100))
    assert not mask[120:].any()


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


def test_a_point_is_a_rhomb_around_it() -> None:
    picture = Image.new("RGB", (200, 100), "white")
    mask = changed(picture, draw_regions(picture, [Spot("", ((60.0, 50.0),))]))
    rows, columns = np.nonzero(mask)
    assert not mask[50, 60]  # what is pointed at stays to be seen
    assert abs((rows.min() + rows.max()) / 2 - 50) <= 1 and abs((columns.min() + columns.max()) / 2 - 60) <= 1
