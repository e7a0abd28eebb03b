"""Small cases by hand, laws of queues, and that nothing is lost on the way."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_trt.fleet.costs import Costs, Curve
from vlm_trt.fleet.dispatch import Route, by_prefix, in_turn, less_busy
from vlm_trt.fleet.outcome import How, Outcome
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.simulation import Death, simulate
from vlm_trt.fleet.workload import Arrival, Traffic, arrivals

# A chunk takes 2 ms and one more for each token, a step 5 ms, of two sequences 6.
COSTS = Costs(
    request_ms=1, picture_ms=10, chunk_ms=Curve(((0.0, 2.0), (512.0, 514.0))), step_ms=Curve(((1.0, 5.0), (2.0, 6.0)))
)
KIND = Kind(costs=COSTS, slots=2)


def times(outcome: Outcome) -> list[tuple[float, float]]:
    """First token and end of each request, milliseconds."""
    return [(round(1000 * one.first_s, 6), round(1000 * one.end_s, 6)) for one in outcome.ended]


def alone(*asked: Arrival, kind: Kind = KIND, deaths: tuple[Death, ...] = (), replicas: int = 1) -> Outcome:
    return simulate(asked, kind, replicas, in_turn(), deaths)


def test_one_request() -> None:
    """Taken in 1, picture 10, prompt 102; two more tokens."""
    assert times(alone(Arrival(0.0, 100, 3, 1))) == [(113, 123)]
    assert times(alone(Arrival(2.0, 100, 1))) == [(2103, 2103)]


def test_the_second_waits_for_the_step_that_runs() -> None:
    """The first one's prompt until 13, its second token until 18; then the other's, behind 1 + 22."""
    assert times(alone(Arrival(0.0, 10, 2), Arrival(0.001, 20, 2))) == [(13, 18), (41, 46)]


def test_a_request_that_comes_between_decode_steps_is_taken_in_after_the_one_that_runs() -> None:
    """Steps of the first end at 18, 23, 28, 33; the other's prompt at 56; both have a token at 62, and the first one's
    last four take 5 each. At 33 sharp, it is the same."""
    for at in (0.030, 0.033):
        assert times(alone(Arrival(0.0, 10, 10), Arrival(at, 20, 2))) == [(13, 82), (56, 62)]


def test_a_long_prompt_is_prefilled_in_chunks_between_which_others_have_a_token() -> None:
    """512 and 488 tokens; the first one runs beside them."""
    outcome = alone(Arrival(0.0, 10, 5), Arrival(0.013, 1000, 2))
    first = 18 + 1 + 514 + 5 + 490
    assert times(outcome) == [(13, first + 6 + 5), (first, first + 6)]
    assert times(alone(Arrival(0.0, 1000, 1))) == [(1 + 514 + 490, 1 + 514 + 490)]


def test_what_has_no_slot_waits_and_what_has_no_room_is_refused() -> None:
    kind = Kind(costs=COSTS, slots=1, max_waiting=1)
    outcome = alone(Arrival(0.0, 10, 3), Arrival(0.001, 10, 1), Arrival(0.002, 10, 1), Arrival(0.05, 10, 1), kind=kind)
    # Until 23 the first; the second is taken in at 18 already.
    assert [one.how for one in outcome.ended] == [How.ANSWERED, How.ANSWERED, How.REFUSED, How.ANSWERED]
    assert times(outcome)[:2] == [(13, 24), (36, 36)]
    assert (outcome.figures().answered, outcome.figures().refused) == (3, 1)


def test_a_replica_that_dies_loses_what_it_has_and_comes_back_empty() -> None:
    """At 20 ms the first has had two tokens; what arrives before 60 goes to the other one."""
    asked = [Arrival(at, 10, 3) for at in (0.0, 0.01, 0.03, 0.07)]
    outcome = alone(*asked, replicas=2, deaths=(Death(0, 0.020, 0.060),))
    assert [one.how for one in outcome.ended] == [How.LOST, *[How.ANSWERED] * 3]
    assert [one.replica for one in outcome.ended] == [0, 1, 1, 0]
    assert times(outcome)[0] == (13, 20) and outcome.figures().lost == 1
    # Busy until it died, and from 70 on, when the last request came and time is not counted any more.
    assert outcome.figures().busy[0] == pytest.approx(20 / 70)


def test_what_was_on_a_replica_that_died_can_be_asked_of_another() -> None:
    """What was told is told; the answer comes from the other replica, all of it again."""
    outcome = alone(Arrival(0.0, 10, 9), Arrival(0.001, 10, 1), replicas=2, deaths=(Death(0, 0.020, retried=True),))
    assert outcome.ended[0].replica == 1 and times(outcome) == [(13, 20 + 1 + 12 + 8 * 5), (14, 14)]
    nowhere = alone(Arrival(0.0, 10, 9), deaths=(Death(0, 0.020, retried=True),))
    assert [one.how for one in nowhere.ended] == [How.REFUSED]


def test_a_token_that_was_on_its_way_when_its_replica_died_never_came() -> None:
    outcome = alone(Arrival(0.0, 10, 1), deaths=(Death(0, 0.012),))
    assert outcome.ended[0].how is How.LOST and math.isnan(outcome.ended[0].first_s)


@pytest.mark.parametrize("router", [less_busy, partial(by_prefix, most_behind=1), lambda seed: in_turn()])
def test_the_same_seed_is_the_same_run(router: Callable[[int], Route]) -> None:
    traffic = Traffic(requests_per_second=20, text_tokens=20, answer_tokens=8, pictures=1, burst=2, turns=3, think_s=2)
    asked = arrivals(traffic, 500, 700, seed=3)
    runs = [simulate(asked, KIND, 3, router(7)) for _ in range(2)]
    assert runs[0] == runs[1] and runs[0] != simulate(arrivals(traffic, 500, 700, seed=4), KIND, 3, router(7))


def waits_ms(asked: tuple[Arrival, ...], ms_per_token: float) -> float:
    """Mean milliseconds before a request of one token is begun, by a server that takes one at a time."""
    costs = Costs(chunk_ms=Curve(((0.0, 0.0), (1e6, 1e6 * ms_per_token))), step_ms=Curve(((1.0, 1.0),)))
    kind = Kind(costs=costs, slots=1, max_waiting=1 << 20, chunk_tokens=1 << 20)
    outcome = simulate([replace(one, answer_tokens=1) for one in asked], kind, 1, in_turn())
    return float(np.mean([one.first_token_ms - ms_per_token * one.asked.prompt_tokens for one in outcome.ended]))


def queue(spread: float, burst: float = 1) -> tuple[Arrival, ...]:
    """Requests of 100 tokens, 70 a second."""
    traffic = Traffic(requests_per_second=70, text_tokens=100, answer_tokens=1, spread=spread, burst=burst)
    return arrivals(traffic, 60_000, 1 << 20, seed=1)


def test_the_wait_is_that_of_m_d_1() -> None:
    """ρ / (2 (1 − ρ)) services: Poisson arrivals, services all alike (Pollaczek and Khinchine)."""
    assert waits_ms(queue(spread=0), 0.1) == pytest.approx(10 * 0.7 / (2 * 0.3), rel=0.05)


def test_the_wait_is_that_of_m_m_1() -> None:
    """ρ / (1 − ρ) services: those of exponential length, as a gamma distribution with a spread of 1 is."""
    assert waits_ms(queue(spread=1), 0.1) == pytest.approx(10 * 0.7 / 0.3, rel=0.07)


def test_bursts_wait_longer() -> None:
    """Gaps that vary twice as much: about (4 + 0) / (1 + 0) times the wait of M/D/1 (Kingman)."""
    assert waits_ms(queue(spread=0, burst=2), 0.1) == pytest.approx(4 * 10 * 0.7 / (2 * 0.3), rel=0.2)


requests = st.lists(
    st.tuples(
        st.integers(0, 400),  # milliseconds since the last one
        st.integers(1, 1200),
        st.integers(1, 12),
        st.integers(0, 2),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=40,
)
deaths = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 4000), st.one_of(st.none(), st.integers(0, 2000)), st.booleans()),
    max_size=4,
)


@settings(max_examples=80, deadline=None)
@given(requests, deaths, st.sampled_from(["less", "prefix", "turn"]), st.integers(0, 2))
def test_every_request_ends_once(
    asked: list[tuple[int, int, int, int, int | None]],
    dying: list[tuple[int, int, int | None, bool]],
    router: str,
    waiting: int,
) -> None:
    """Answered, refused or lost, in its order of time; nothing that was never alive has done anything."""
    now, found = 0, []
    for gap, prompt, answer, pictures, conversation in asked:
        now += gap
        shared = prompt // 2 if conversation is not None else 0
        found.append(Arrival(now / 1000, prompt, answer, pictures, conversation, shared))
    route: Route = {"less": less_busy(0), "prefix": by_prefix(0, 1), "turn": in_turn()}[router]
    killed = [
        Death(which, at / 1000, math.inf if away is None else (at + away) / 1000, again)
        for which, at, away, again in dying
    ]
    outcome = simulate(found, Kind(costs=COSTS, slots=2, max_waiting=waiting), 3, route, killed)
    assert tuple(one.asked for one in outcome.ended) == tuple(found)
    for one in outcome.ended:
        assert one.end_s >= one.asked.at_s
        if one.how is How.ANSWERED:
            assert one.asked.at_s < one.first_s <= one.end_s
            least = COSTS.request_ms + (one.asked.answer_tokens - 1) * 5
            assert one.latency_ms >= least
    counts, figures = Counter(one.how for one in outcome.ended), outcome.figures()
    assert (figures.answered, figures.refused, figures.lost) == tuple(counts[how] for how in How)
    if not killed:
        assert not figures.lost
    for spans in outcome.busy:
        assert all(begin <= end for begin, end in spans)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert max(figures.busy, default=0) <= 1 + 1e-9
