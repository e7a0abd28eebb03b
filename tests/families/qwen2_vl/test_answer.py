"""Tags in an answer → boxes in pixels of the original picture."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from vlm_trt.families.messages import Answered, Grounding
from vlm_trt.families.qwen2_vl.answer import parse_answer, write_places

CASES = json.loads((ROOT / "tests" / "golden" / "qwen2_vl" / "outputs.json").read_text())["cases"]
TAGS = [f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad") for end in ("start", "end")]
DOG = "<|object_ref_start|>dog<|object_ref_end|>"
BOX = "<|box_start|>(100,200),(300,400)<|box_end|>"


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_places_are_the_recorded_ones(case: dict[str, Any]) -> None:
    answer = parse_answer(case["text"], [(1, 1), (case["width"], case["height"])])
    assert [one.name for one in answer.groundings] == [one["label"] or "" for one in case["objects"]]
    found = [[*one.points[0], *one.points[1]] for one in answer.groundings]
    assert found == [pytest.approx(one["box_xyxy"]) for one in case["objects"]]
    assert all(one.kind == "box" and one.picture == 1 for one in answer.groundings)
    assert answer.malformed == (case["name"] == "broken")
    assert "<|" not in answer.plain_text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (f"{DOG}{BOX}", "dog"),
        (f"The {DOG}{BOX} barks.<|im_end|>", "The dog barks."),
        (f"{BOX}{BOX}", ""),
        ("  a <b> & <box>(1,2),(3,4)</box>\n", "a <b> & <box>(1,2),(3,4)</box>"),
        (f"{DOG}<|box_start|>(100,200),(30 and no more", "dog and no more"),
        ("", ""),
    ],
)
def test_the_plain_text_has_no_tags(text: str, plain: str) -> None:
    assert parse_answer(text, [(100, 100)]).plain_text == plain


@pytest.mark.parametrize(
    "text",
    [
        "<|box_start|>(1,2)<|box_end|>",
        "<|box_start|>(1,2),(3,4),(5,6)<|box_end|>",
        "<|box_start|>(1,2),(3,1001)<|box_end|>",
        "<|box_start|>(1,2),(3,4) or so<|box_end|>",
        "<|box_start|>(1,2),(3,4)<|quad_end|>",
        "<|quad_start|>(1,2),(3,4)<|quad_end|>",
        "<|box_start|>",
    ],
)
def test_a_broken_place_is_counted_and_not_drawn(text: str) -> None:
    answer = parse_answer(f"{DOG}{BOX} {text} {DOG}{BOX}", [(100, 100)])
    assert ([one.name for one in answer.groundings], answer.malformed) == (["dog", "dog"], 1)


def test_a_name_ends_with_other_text() -> None:
    answer = parse_answer(f"{DOG}{BOX}, {BOX} and {BOX}", [(1000, 1000)])
    assert [one.name for one in answer.groundings] == ["dog", "dog", ""]


def test_a_quad() -> None:
    (found,) = parse_answer("<|quad_start|>(0,0),(10,0),(10,20),(0,20)<|quad_end|>", [(500, 100)]).groundings
    assert found == Grounding("", "quad", ((0.0, 0.0), (5.0, 0.0), (5.0, 2.0), (0.0, 2.0)), 0)


def test_a_place_without_a_picture_is_broken() -> None:
    assert parse_answer(f"{DOG}{BOX}", []) == Answered("dog", (), 1)


def test_what_is_written_is_read() -> None:
    text = write_places("a cat", [(0.1, 0.25, 0.5, 1.0), (0.0, 0.0, 1.0, 0.001)])
    found = parse_answer(text, [(1000, 1000)])
    assert [one.name for one in found.groundings] == ["a cat", "a cat"]
    assert [one.points for one in found.groundings] == [((100, 250), (500, 999)), ((0, 0), (999, 1))]


@pytest.mark.parametrize("unit", [DOG, BOX, *TAGS, "<", "<|", "(1,", " ", "(1,2),"])
def test_a_long_answer_takes_no_minute(unit: str) -> None:
    started = time.perf_counter()
    parse_answer(unit * ((1 << 20) // len(unit)), [(10, 10)])
    assert time.perf_counter() - started < 10


@given(
    st.lists(st.one_of(st.sampled_from([*TAGS, BOX, DOG]), st.text("<|>box(0123456789,) ")), max_size=20).map("".join)
)
def test_no_text_crashes_it(text: str) -> None:
    answer = parse_answer(text, [(320, 240)])
    assert all(0 <= x <= 320 and 0 <= y <= 240 for one in answer.groundings for x, y in one.points)
