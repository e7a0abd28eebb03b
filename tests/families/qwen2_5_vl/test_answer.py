"""JSON in an answer → boxes and points in pixels of the original picture."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.families.published.published_configs import QWEN2_5_VL_7B, written
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.families.contract import Seen
from vlm_trt.families.messages import Answered, Grounding, Look
from vlm_trt.families.qwen2_5_vl.answer import Size, parse_json_places
from vlm_trt.families.qwen2_5_vl.config import read_config
from vlm_trt.families.qwen2_5_vl.family import parse_answer

CASES = json.loads((ROOT / "tests" / "golden" / "qwen2_5_vl" / "outputs.json").read_text())["cases"]
DOG = '{"bbox_2d": [1, 2, 3, 4], "label": "dog"}'
CAT = '{"point_2d": [5, 6.5], "label": "cat"}'
NAMES = {
    "two": "dog, sofa", "big": "dog, sofa", "tiny_upscaled": "all", "plain_json": "a", "single_object": "a",
    "points": "nose", "text_before": "Here you go:\ndog, sofa\nDone.", "empty_list": "```json\n[]\n```",
    "no_json": "There are none.", "truncated": "dog", "no_label": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return read_config(written(tmp_path_factory.mktemp("published"), "qwen2_5_vl", QWEN2_5_VL_7B, 14))


def same(size: Size) -> Size:
    return size


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_places_are_the_recorded_ones(case: dict[str, Any], model: ModelConfig) -> None:
    answer = parse_answer(case["text"], [Seen((1, 1)), Seen((case["width"], case["height"]))], model)
    assert [one.name for one in answer.groundings] == [one["label"] or "" for one in case["objects"]]
    kinds = ["box" if "box_xyxy" in one else "point" for one in case["objects"]]
    assert [one.kind for one in answer.groundings] == kinds
    found = [[number for point in one.points for number in point] for one in answer.groundings]
    expected = [one["box_xyxy"] if "box_xyxy" in one else one["point_xy"] for one in case["objects"]]
    assert found == [pytest.approx(one) for one in expected]
    assert all(one.picture == 1 for one in answer.groundings)
    assert answer.malformed == (case["name"] == "truncated")
    assert answer.plain_text == NAMES[case["name"]]


def test_places_lie_in_the_picture_as_it_was_looked_at(model: ModelConfig) -> None:
    """840×560 pixels are seen as they are, or within 156,800 as 476×308: 17 by 11 tokens."""
    text, size = '[{"bbox_2d": [0, 0, 476, 308], "label": "all"}]', (840, 560)
    (whole,) = parse_answer(text, [Seen((1, 1)), Seen(size, Look(max_pixels=156_800))], model).groundings
    assert whole.points == ((0, 0), (840, 560))
    (part,) = parse_answer(text, [Seen((1, 1), Look(max_pixels=156_800)), Seen(size)], model).groundings
    assert part.points == ((0, 0), (476, 308))
    beyond = '{"bbox_2d": [0, 0, 477, 308]}'
    assert parse_answer(beyond, [Seen(size, Look(max_pixels=156_800))], model) == Answered("", (), 1)


def test_a_point_in_pixels() -> None:
    found = parse_json_places(CAT, [(1000, 500)], lambda size: (100, 100))
    assert found == Answered("cat", (Grounding("cat", "point", ((50.0, 32.5),), 0),))


@pytest.mark.parametrize(
    ("text", "plain", "names"),
    [
        (f"[{DOG}, {CAT}]", "dog, cat", ["dog", "cat"]),
        (f"```\n[{DOG}]\n```", "dog", ["dog"]),
        (f"```json\n{DOG}\n```<|im_end|>", "dog", ["dog"]),
        (f"The \"best: ```json\n[{DOG}]``` it's", "The \"best: dog it's", ["dog"]),
        (f"{DOG} and {CAT}", "dog and cat", ["dog", "cat"]),
        (f'{{"objects": [{DOG}]}}', None, ["dog"]),  # within another object
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a } {\\" b"}]', 'a } {" b', ['a } {" b']),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": 7}]', "", [""]),
        ('[{"total": 12.5, "label": "bill"}]', '[{"total": 12.5, "label": "bill"}]', []),
        ('{"label": "no \\"bbox_2d\\" here"}', None, []),
        ("{ braces } and [lists]", "{ braces } and [lists]", []),
        ("", "", []),
    ],
)
def test_what_is_read(text: str, plain: str | None, names: list[str]) -> None:
    answer = parse_json_places(text, [(10, 10)], same)
    assert [one.name for one in answer.groundings] == names
    assert plain is None or answer.plain_text == plain
    assert answer.malformed == 0


@pytest.mark.parametrize(
    "written_place",
    [
        '{"bbox_2d": [1, 2, 3], "label": "x"}',
        '{"bbox_2d": [1, 2, 3, 4, 5]}',
        '{"bbox_2d": [1, 2, 3, 11]}',
        '{"bbox_2d": [1, 2, 3, -1]}',
        '{"bbox_2d": [1, 2, 3, NaN]}',
        '{"bbox_2d": [1, 2, 3, true]}',
        '{"bbox_2d": [1, 2, 3, "4"]}',
        '{"bbox_2d": [[1, 2], [3, 4]]}',
        '{"bbox_2d": null}',
        '{"bbox_2d": [1, 2, 3, 4] "label": "x"}',
        '{"point_2d": [1]}',
        f'{{"bbox_2d": {"[" * 100_000}}}',
        f'{{"bbox_2d": [1, 2, 3, {"9" * 10_000}]}}',
    ],
    ids=range(13),
)
def test_a_broken_place_is_counted_and_not_drawn(written_place: str) -> None:
    answer = parse_json_places(f"[{DOG}, {written_place}, {CAT}]", [(10, 10)], same)
    assert ([one.name for one in answer.groundings], answer.malformed) == (["dog", "cat"], 1)


@pytest.mark.parametrize("cut", range(1, len(DOG)))
def test_a_list_that_was_cut_short_keeps_its_complete_objects(cut: int) -> None:
    answer = parse_json_places(f"```json\n[{DOG}, {DOG[:cut]}", [(10, 10)], same)
    assert [one.name for one in answer.groundings] == ["dog"]
    assert answer.malformed == ('"bbox_2d"' in DOG[:cut])


def test_a_place_without_a_picture_is_broken() -> None:
    assert parse_json_places(f"[{DOG}]", [], same) == Answered("", (), 1)


@pytest.mark.parametrize(
    "unit", ["{", "}", '"', '{"', '{"\\"', '"\\"', "\\", DOG, '{"a":', "[", " ", '{"bbox_2d":', "{ ", "`", "[ "]
)
def test_a_long_answer_takes_no_minute(unit: str) -> None:
    started = time.perf_counter()
    parse_json_places(unit * ((1 << 20) // len(unit)), [(10, 10)], same)
    assert time.perf_counter() - started < 10


@given(
    st.lists(
        st.one_of(
            st.sampled_from([DOG, CAT, "```json", "```", "[", "]", "{", "}", '"', "\\", '"bbox_2d": ', "[1, 2, 3, 4]"]),
            st.text('{}[]",:0123456789. bc'),
        ),
        max_size=20,
    ).map("".join)
)
def test_no_text_crashes_it(text: str) -> None:
    answer = parse_json_places(text, [(320, 240)], same)
    assert all(0 <= x <= 320 and 0 <= y <= 240 for one in answer.groundings for x, y in one.points)
