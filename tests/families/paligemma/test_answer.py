"""Codes in an answer → boxes in pixels of the original picture."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from vlm_trt.families.messages import Answered, Grounding
from vlm_trt.families.paligemma.answer import parse_answer

CASES = json.loads((ROOT / "tests" / "golden" / "paligemma" / "outputs.json").read_text())["cases"]
BOX = "<loc0100><loc0200><loc0600><loc0700>"
OUTLINE = "".join(f"<seg{at:03}>" for at in range(16))
# What the recorded answers hold that is no place.
BROKEN = {"three_locs": 1, "fifteen_segs": 1, "inverted": 1, "second_broken": 1}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_places_are_the_recorded_ones(case: dict[str, Any]) -> None:
    answer = parse_answer(case["text"], [(1, 1), (case["width"], case["height"])])
    valid = [one for one in case["objects"] if one["valid"]]
    assert [one.name for one in answer.groundings] == [one["label"] for one in valid]
    assert [[*one.points[0], *one.points[1]] for one in answer.groundings] == [one["box_xyxy_1024"] for one in valid]
    assert [one.mask_codes for one in answer.groundings] == [tuple(one["seg"] or ()) for one in valid]
    assert all(one.kind == "box" and one.picture == 1 for one in answer.groundings)
    assert answer.malformed == BROKEN.get(case["name"], 0)
    assert "<" not in answer.plain_text


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (f"{BOX} cat", "cat"),
        (f"{BOX} cat ; {BOX}{OUTLINE} traffic light", "cat ; traffic light"),
        (f"{BOX}cat;{BOX}dog<eos>", "cat;dog"),
        (f"{BOX} ; {BOX}", ""),
        (BOX, ""),
        ("a cow; standing on a beach;", "a cow; standing on a beach;"),
        ("  a cow\n", "a cow"),
        ("<loc0001><loc0002> dog", "dog"),
        ("", ""),
    ],
)
def test_the_plain_text_has_no_codes(text: str, plain: str) -> None:
    assert parse_answer(text, [(100, 100)]).plain_text == plain


@pytest.mark.parametrize(
    "text",
    [
        "<loc0001>",
        f"{BOX}<loc0001> five",
        f"{BOX}{OUTLINE}<seg001> seventeen",
        f"{BOX}{OUTLINE[:-8]} fifteen",
        f"{OUTLINE} no box",
        f"before {BOX} cat",
        f"{BOX} behind <loc0001>",
        f"{BOX}{BOX} two",
        "<loc0001><loc0001><loc1024><loc1024> beyond",
        f"{BOX}{OUTLINE[:-8]}<seg128> beyond",
        "<loc0100><loc0200><loc0100><loc0300> flat",
        "<loc0100><loc0200><loc0300><loc0200> thin",
    ],
)
def test_a_broken_place_is_counted_and_not_drawn(text: str) -> None:
    answer = parse_answer(f"{BOX} cat ; {text} ; {BOX} dog", [(100, 100)])
    assert ([one.name for one in answer.groundings], answer.malformed) == (["cat", "dog"], 1)


def test_a_place_without_a_picture_is_broken() -> None:
    assert parse_answer(f"{BOX} cat", []) == Answered("cat", (), 1)


def test_a_box_in_pixels() -> None:
    found = parse_answer(f"{BOX}{OUTLINE} cat", [(1024, 512)])
    corners = ((200.0, 50.0), (700.0, 300.0))
    assert found == Answered("cat", (Grounding("cat", "box", corners, 0, tuple(range(16))),))


@pytest.mark.parametrize("unit", ["<loc0001>", BOX, "<seg001>", "<", "<loc", ";", " ", f"{BOX} a ;"])
def test_a_long_answer_takes_no_minute(unit: str) -> None:
    started = time.perf_counter()
    parse_answer(unit * ((1 << 20) // len(unit)), [(10, 10)])
    assert time.perf_counter() - started < 10


@given(
    st.lists(
        st.one_of(st.sampled_from(["<loc0001>", "<loc1023>", BOX, OUTLINE, ";", " "]), st.text("<>locseg0123456789; ")),
        max_size=20,
    ).map("".join)
)
def test_no_text_crashes_it(text: str) -> None:
    answer = parse_answer(text, [(320, 240)])
    assert all(0 <= x <= 320 and 0 <= y <= 240 for one in answer.groundings for x, y in one.points)
