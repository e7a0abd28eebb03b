"""Overlap of places: by hand, and what holds for all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.evaluation.geometry import area, intersection, iou, outline
from vlm_trt.families.messages import Grounding

SQUARE = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
corner = st.tuples(st.integers(0, 999), st.integers(0, 999))
boxes = st.tuples(corner, corner).filter(lambda box: box[0][0] != box[1][0] and box[0][1] != box[1][1])


def place(*points: tuple[float, float]) -> Grounding:
    return Grounding("", "box" if len(points) == 2 else "quad", points, 0)


def by_hand(one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]) -> float:
    """IoU of two boxes the usual way, from the sides."""
    sides = [
        (min(box[0][axis], box[1][axis]), max(box[0][axis], box[1][axis])) for box in (one, other) for axis in (0, 1)
    ]
    (ax, ay), (bx, by) = sides[:2], sides[2:]
    width, height = min(ax[1], bx[1]) - max(ax[0], bx[0]), min(ay[1], by[1]) - max(ay[0], by[0])
    shared = max(0, width) * max(0, height)
    areas = (ax[1] - ax[0]) * (ay[1] - ay[0]) + (bx[1] - bx[0]) * (by[1] - by[0])
    return shared / (areas - shared)


@given(boxes, boxes)
def test_boxes_overlap_as_the_usual_formula_says(
    one: tuple[tuple[int, int], ...], other: tuple[tuple[int, int], ...]
) -> None:
    found = iou(outline(place(*one)), outline(place(*other)))
    assert found == pytest.approx(by_hand(one, other), abs=1e-9)
    assert found == iou(outline(place(*other)), outline(place(*one)))


@given(st.lists(corner, min_size=4, max_size=4), st.lists(corner, min_size=4, max_size=4))
def test_any_quads_overlap_by_a_share(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    first, second = outline(place(*one)), outline(place(*other))
    assert 0 <= iou(first, second) <= 1
    assert iou(first, second) == pytest.approx(iou(second, first), abs=1e-9)
    if area(first) > 0:
        assert iou(first, first) == 1
    assert area(first) >= 0 and area(intersection(first, second)) <= min(area(first), area(second)) + 1e-6


def test_a_diamond_in_its_square_fills_half_of_it() -> None:
    diamond = place((5, 0), (10, 5), (5, 10), (0, 5))
    assert area(outline(diamond)) == 50
    assert iou(outline(diamond), SQUARE) == 0.5


def test_two_triangular_halves_share_a_quarter() -> None:
    """Below each diagonal of the square: they share the triangle under the centre, 25 of 75."""
    lower_left = place((0, 0), (10, 0), (0, 10), (0, 10))
    lower_right = place((0, 0), (10, 0), (10, 10), (10, 10))
    assert iou(outline(lower_left), outline(lower_right)) == pytest.approx(25 / 75)


@pytest.mark.parametrize("points", [((0, 0), (10, 10), (10, 0), (0, 10)), ((0, 0), (10, 0), (3, 3), (0, 10))])
def test_a_quad_that_crosses_itself_or_has_a_dent_is_its_bounding_box(points: tuple[tuple[float, float], ...]) -> None:
    assert area(outline(place(*points))) == 100


def test_corners_may_come_in_any_order_and_direction() -> None:
    assert iou(outline(place((10, 10), (0, 0))), SQUARE) == 1
    assert iou(outline(place((0, 0), (0, 10), (10, 10), (10, 0))), SQUARE) == 1


def test_places_that_only_touch_or_have_no_area_share_nothing() -> None:
    assert iou(SQUARE, outline(place((10, 0), (20, 10)))) == 0
    point = outline(place((3, 3), (3, 3)))
    assert iou(point, point) == iou(SQUARE, point) == iou(point, SQUARE) == area(intersection(SQUARE, point)) == 0
