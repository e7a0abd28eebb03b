"""What is drawn is what was asked for."""

from itertools import pairwise

import numpy as np
import pytest

from vlm_trt.fleet.workload import QUESTION_TOKENS, Arrival, Traffic, arrivals


def traffic(**others: float) -> Traffic:
    return Traffic(**{"requests_per_second": 10, "text_tokens": 300, "answer_tokens": 50, "pictures": 1, **others})  # type: ignore[arg-type]


@pytest.mark.parametrize("burst", [0, 1, 3])
def test_rate_and_bursts(burst: float) -> None:
    gaps = np.diff([one.at_s for one in arrivals(traffic(burst=burst), 50_000, 4096, seed=0)])
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(burst, rel=0.05, abs=1e-6)


@pytest.mark.parametrize("spread", [0, 0.5, 1])
def test_lengths(spread: float) -> None:
    found = arrivals(traffic(spread=spread), 20_000, 100_000, seed=0)
    for lengths, mean in (
        (np.array([one.prompt_tokens for one in found]), 300),
        (np.array([one.answer_tokens for one in found]), 50),
    ):
        assert lengths.mean() == pytest.approx(mean, rel=0.02)
        assert lengths.std() / lengths.mean() == pytest.approx(spread, rel=0.05, abs=1e-9)
    assert {one.pictures for one in found} == {1} and {one.conversation for one in found} == {None}


def test_pictures_are_part_of_a_prompt() -> None:
    found = arrivals(traffic(pictures=2, picture_tokens=100, spread=1), 5_000, 700, seed=0)
    assert traffic(pictures=2, picture_tokens=100).prompt_tokens == 500
    assert min(one.prompt_tokens for one in found) == 201
    assert max(one.prompt_tokens + one.answer_tokens for one in found) == 700


def test_what_does_not_fit_is_cut() -> None:
    found = arrivals(traffic(spread=1), 5_000, 400, seed=0)
    assert max(one.prompt_tokens + one.answer_tokens for one in found) == 400
    assert min(min(one.prompt_tokens, one.answer_tokens) for one in found) >= 1


def test_seeds() -> None:
    assert arrivals(traffic(turns=3), 100, 4096, seed=1) == arrivals(traffic(turns=3), 100, 4096, seed=1)
    assert arrivals(traffic(turns=3), 100, 4096, seed=1) != arrivals(traffic(turns=3), 100, 4096, seed=2)


def test_a_conversation_goes_on_from_what_was_said() -> None:
    """Each turn begins with the last one's prompt and answer, but for its last token, when that was thought over."""
    found = arrivals(traffic(turns=3, think_s=5), 5_000, 4096, seed=0)
    by_number: dict[int, list[Arrival]] = {}
    for one in found:
        assert one.conversation is not None
        by_number.setdefault(one.conversation, []).append(one)
    begun = [one for number, one in by_number.items() if number >= 0]
    for turns in begun:
        assert turns[0].shared_tokens == 0 and len(turns) <= 3
        for before, after in pairwise(turns):
            assert after.at_s - before.at_s >= 5
            assert after.shared_tokens == before.prompt_tokens + before.answer_tokens - 1
            assert after.prompt_tokens == after.shared_tokens + QUESTION_TOKENS
    assert sum(len(turns) == 3 for turns in begun) > 0.8 * len(begun)


def test_some_conversations_are_open_from_the_beginning() -> None:
    """A third of the requests begin one, in the first seconds as later on."""
    found = arrivals(traffic(turns=3, think_s=20), 6_000, 4096, seed=0)
    for part in (found[:300], found[-3000:]):
        assert np.mean([one.shared_tokens == 0 for one in part]) == pytest.approx(1 / 3, abs=0.08)


def test_a_conversation_that_is_full_is_not_gone_on_with() -> None:
    found = arrivals(traffic(turns=10, think_s=1), 3_000, 500, seed=0)
    assert max(one.prompt_tokens + one.answer_tokens for one in found) <= 500
