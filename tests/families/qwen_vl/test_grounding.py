"""Boxes and quads in an answer → pixels of the original picture."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.families.messages import Grounding
from vlm_trt.families.qwen_vl.grounding import parse_answer


def test_a_named_box_in_pixels() -> None:
    answer = parse_answer("Here: <ref>red circle</ref><box>(100,200),(500,999)</box>.", [(640, 480)])
    assert answer.groundings == (Grounding("red circle", "box", ((64.0, 96.0), (320.0, 479.52)), 0),)
    assert answer.plain_text == "Here: red circle."
    assert answer.malformed == 0


def test_several_boxes_share_a_name_and_belong_to_the_last_picture() -> None:
    text = "<ref>狗</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box><quad>(0,0),(9,0),(9,9),(0,9)</quad>"
    answer = parse_answer(text, [(10, 10), (1000, 1000)])
    assert [(one.name, one.kind, one.picture) for one in answer.groundings] == [
        ("狗", "box", 1),
        ("狗", "box", 1),
        ("狗", "quad", 1),
    ]
    assert answer.groundings[2].points == ((0, 0), (9, 0), (9, 9), (0, 9))


def test_a_box_without_a_name() -> None:
    assert parse_answer("<box>(1,2),(3,4)</box>", [(1000, 1000)]).groundings[0].name == ""


@pytest.mark.parametrize(
    "text",
    [
        "<box>(1,2)</box>",
        "<box>(1,2),(3,4),(5,6)</box>",
        "<box>(1,2),(3,1001)</box>",
        "<quad>(1,2),(3,4)</quad>",
        "<box></box>",
        "<box>(1,2),(3,4)",
        "<box>(1,2),(3",
        "<box>some (1,2),(3,4)</box>",
        "<box>(1,2),(3,4)</quad>",
    ],
)
def test_a_malformed_place_is_counted_and_not_drawn(text: str) -> None:
    answer = parse_answer(text, [(100, 100)])
    assert (answer.groundings, answer.malformed) == ((), 1)


def test_a_place_without_a_picture_is_malformed() -> None:
    assert parse_answer("<box>(1,2),(3,4)</box>", []).malformed == 1


def test_a_name_reaches_as_far_as_its_places() -> None:
    text = "<ref>cat</ref><box>(1,2),(3,4)</box>, <box>(5,6),(7,8)</box> and <box>(9,9),(10,10)</box>"
    assert [one.name for one in parse_answer(text, [(1000, 1000)]).groundings] == ["cat", "cat", ""]


def test_an_answer_cut_short_shows_no_coordinates() -> None:
    answer = parse_answer("A <ref>dog</ref><box>(1,2),(3", [(100, 100)])
    assert (answer.plain_text, answer.malformed) == ("A dog", 1)
    answer = parse_answer("A <box>(1,2),(3,4) dog <ref>and</ref><box>(1,1),(2,2)</box>", [(1000, 1000)])
    assert (answer.plain_text, answer.malformed, len(answer.groundings)) == ("A  dog and", 1, 1)


@pytest.mark.parametrize("unit", ["<ref>", "<box>(", "<box>" + "(1,1)" * 1000, "<quad> ", "</box>"])
def test_many_open_tags_take_no_minute(unit: str) -> None:
    started = time.perf_counter()
    parse_answer(unit * ((1 << 20) // len(unit)), [(10, 10)])
    assert time.perf_counter() - started < 10


@given(st.text(alphabet="<>/refboxquad()0123456789, ", max_size=120))
def test_no_text_crashes_it(text: str) -> None:
    answer = parse_answer(text, [(320, 240)])
    assert all(0 <= x <= 320 and 0 <= y <= 240 for one in answer.groundings for x, y in one.points)
