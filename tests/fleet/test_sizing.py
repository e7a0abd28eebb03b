"""How many replicas, and what cannot be had."""

from dataclasses import replace
from functools import partial

import pytest

from vlm_trt.bundle.errors import ResourceError
from vlm_trt.fleet.costs import Costs, Curve
from vlm_trt.fleet.dispatch import by_prefix, less_busy
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.sizing import MOST_REPLICAS, Question, size
from vlm_trt.fleet.workload import Traffic

COSTS = Costs(
    request_ms=1,
    picture_ms=40,
    chunk_ms=Curve(((0.0, 50.0), (512.0, 120.0))),
    step_ms=Curve(((1.0, 50.0), (8.0, 64.0))),
)
TRAFFIC = Traffic(requests_per_second=4, text_tokens=300, answer_tokens=64, pictures=1)


def question(first_token_ms: float = 1500, slots: int = 8, **others: float) -> Question:
    traffic = replace(TRAFFIC, **others)  # type: ignore[arg-type]
    return Question(traffic, first_token_ms, Kind(costs=COSTS, slots=slots), 2048)


def test_the_number_that_is_found_does_and_one_less_does_not() -> None:
    for asked in (question(), question(burst=3), question(first_token_ms=400)):
        found = size(asked, less_busy)
        assert asked.met(found.figures) and not asked.met(asked.figures(found.replicas - 1, less_busy))
        assert found.figures == asked.figures(found.replicas, less_busy)


def test_bursts_and_less_time_need_more() -> None:
    usual = size(question(), less_busy).replicas
    assert size(question(burst=3), less_busy).replicas > usual
    assert size(question(first_token_ms=300), less_busy).replicas > usual
    assert size(question(first_token_ms=60_000), less_busy).replicas <= usual


def test_one_that_dies_is_one_more_at_most_and_what_it_had_is_counted() -> None:
    asked = question(requests_per_second=8)
    usual, spare = size(asked, less_busy), size(asked, less_busy, one_dies=True)
    assert spare.replicas in (usual.replicas, usual.replicas + 1)
    assert spare.figures.busy[0] == 0 and spare.figures.answered == spare.figures.requests
    assert 0 < spare.figures.lost <= 8 + 64 and usual.figures.lost == 0


def test_few_seconds_of_few_requests_are_enough_to_see_a_queue_grow() -> None:
    """More work than one replica can do is refused it, however long the requests may wait."""
    asked = question(first_token_ms=1e6, requests_per_second=1)
    assert asked.least_replicas == 1
    assert size(question(first_token_ms=1e6, requests_per_second=20), less_busy).replicas > 6


def test_prefixes_save_pictures_and_prompts() -> None:
    """With slots for all of a replica's conversations most of their prompts are found again."""
    asked = question(turns=4, think_s=5, slots=64)
    near, far = asked.figures(4, partial(by_prefix, most_behind=16)), asked.figures(4, less_busy)
    assert near.reused_share > far.reused_share + 0.2
    assert near.time_to_first_token is not None and far.time_to_first_token is not None
    assert near.time_to_first_token.p50 < far.time_to_first_token.p50


def test_less_than_a_request_alone_takes_is_refused() -> None:
    with pytest.raises(ResourceError) as error:
        size(question(first_token_ms=100), less_busy)
    least = question().least_ms
    assert str(error.value) == (
        "99 of 100 requests cannot have their first token in 100 ms: alone on a replica that has nothing else to do "
        f"and knows nothing of them they take {least:.0f} ms; allow more, or ask with shorter prompts or fewer pictures"
    )
    assert size(question(first_token_ms=least + 10, requests_per_second=0.5), less_busy).replicas > 1


def test_a_rate_beyond_what_is_simulated_is_refused() -> None:
    with pytest.raises(ResourceError) as error:
        size(question(requests_per_second=5000), less_busy)
    sentence = str(error.value)
    assert sentence.startswith("5,000 requests a second in 1,500 ms need at least ")
    assert f"and at most {MOST_REPLICAS} are simulated; ask for a part of the rate, such as " in sentence
    share = float(sentence.partition("such as ")[2].partition(",")[0])
    assert question(requests_per_second=share).least_replicas <= MOST_REPLICAS
