"""What a profile's document says of a replica."""

import copy
from typing import Any

import pytest

from tests.profiling.profile_document import document
from vlm_trt.fleet.costs import Costs, Curve, of_profile
from vlm_trt.profiling.document import SCHEMA


def test_a_curve_is_straight_between_points_and_beyond_them() -> None:
    curve = Curve(((1.0, 10.0), (2.0, 12.0), (4.0, 20.0)))
    assert [curve.at(count) for count in (0, 1, 1.5, 2, 3, 4, 6)] == [10, 10, 11, 12, 16, 20, 28]
    assert Curve(((1.0, 10.0),)).at(5) == 10


def test_a_request_alone_is_all_of_its_chunks() -> None:
    costs = Costs(
        request_ms=1, picture_ms=10, chunk_ms=Curve(((0.0, 2.0), (512.0, 514.0))), step_ms=Curve(((1.0, 5.0),))
    )
    assert costs.alone_ms(1000, 2) == 1 + 20 + 514 + 490
    assert costs.alone_ms(1024, 0) == 1 + 514 + 514


def profiled(**prefills: float) -> dict[str, Any]:
    """A made profile; of some points another prompt length, and milliseconds of its prefill."""
    found = document(batches=(1, 2), images=(1, 2))
    for point in found["points"]:
        batch = point["workload"]["batch"]
        point["metrics"]["input_sequence_length"] = {"unit": "tokens", "p50": 300}
        for name in ("tokenization", "preprocess", "vision_encoder", "resampler", "prefill"):
            point["stages"][name] = {"unit": "ms", "avg": 8.0, "count": point["iterations"] * batch}
        point["samples"]["inter_token_ms"] = [4.0 + batch] * 60 + [90.0]
    return found


def with_prompts(found: dict[str, Any], *points: tuple[int, float]) -> dict[str, Any]:
    """The first points with prompts of these lengths, whose prefills take so many milliseconds."""
    for point, (tokens, ms) in zip(found["points"], points, strict=False):
        chunks = -(-tokens // 512)
        point["metrics"]["input_sequence_length"]["p50"] = tokens
        count = point["iterations"] * point["workload"]["batch"] * chunks
        point["stages"]["prefill"] = {"unit": "ms", "avg": ms / chunks, "count": count}
    return found


def test_a_profile_is_read() -> None:
    found = of_profile(profiled())
    assert found.costs.request_ms == 8
    # With one picture 24 ms a request, with two as much of both together.
    assert found.costs.picture_ms == pytest.approx((24 + 24 + 12) / 3)
    assert [found.costs.step_ms.at(batch) for batch in (1, 2, 3)] == [5, 6, 7]
    # Prompts of one length say nothing of what does not grow with them.
    assert [found.costs.chunk_ms.at(tokens) for tokens in (150, 300)] == pytest.approx([4, 8])
    assert (found.pictures, found.most_sequences, found.family) == (True, 2, "qwen_vl")
    assert (found.backend, found.precision, found.machine) == ("onnxruntime-cpu", "int8", "Processor <b>")


def test_prompts_of_several_lengths_tell_what_a_chunk_takes() -> None:
    """5 ms a chunk and a tenth for each token; a prompt of 800 has two chunks."""
    found = of_profile(with_prompts(profiled(), (100, 15), (400, 45), (800, 90)))
    assert [found.costs.chunk_ms.at(tokens) for tokens in (0, 100, 512)] == pytest.approx([5, 15, 56.2])
    # What would be less than nothing is nothing.
    steep = of_profile(with_prompts(profiled(), (100, 5), (400, 45), (400, 45))).costs
    assert steep.chunk_ms.at(0) == 0 and steep.chunk_ms.at(400) == pytest.approx(44, rel=0.05)
    falling = of_profile(with_prompts(profiled(), (100, 45), (400, 40), (400, 40))).costs
    assert falling.chunk_ms.at(0) == falling.chunk_ms.at(512) == pytest.approx(41, rel=0.05)


def test_without_pictures_they_cost_nothing_that_is_known() -> None:
    found = profiled()
    for point in found["points"]:
        point["workload"]["images"] = 0
    assert not of_profile(found).pictures and of_profile(found).costs.picture_ms == 0


def test_the_schema_is_that_of_profiles() -> None:
    assert document()["schema"] == SCHEMA == 2


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("schema",), 1, "its schema is 1, this version reads 2"),
        (("points",), [], "points are none"),
        (("points",), {}, "'points' is missing or of a wrong type"),
        (("setup", "family"), None, "'family' is missing or of a wrong type"),
        (("points", 0, "iterations"), 0, "iterations is 0"),
        (("points", 0, "workload", "batch"), True, "'batch' is missing or of a wrong type"),
        (("points", 0, "stages", "prefill"), None, "'prefill' is missing or of a wrong type"),
        (("points", 0, "stages", "prefill", "avg"), float("nan"), "avg is nan"),
        (("points", 0, "stages", "resampler", "count"), -1, "count is -1"),
        (("points", 1, "samples", "inter_token_ms"), ["4"], "'inter_token_ms' is missing or of a wrong type"),
        (("points", 1, "samples", "inter_token_ms"), [-1.0], "inter_token_ms is -1.0"),
    ],
)
def test_a_damaged_profile_is_refused(path: tuple[Any, ...], value: Any, sentence: str) -> None:
    found = copy.deepcopy(profiled())
    *outer, last = path
    place = found
    for step in outer:
        place = place[step]
    place[last] = value
    with pytest.raises(ValueError) as error:
        of_profile(found)
    assert str(error.value) == sentence


def test_answers_of_one_token_say_nothing_of_steps() -> None:
    found = profiled()
    for point in found["points"]:
        point["samples"]["inter_token_ms"] = []
    with pytest.raises(ValueError, match="no answer has two tokens, so that no decode step was measured"):
        of_profile(found)
    with pytest.raises(ValueError, match="'schema' is missing or of a wrong type"):
        of_profile([])
