"""How far probabilities are apart, along answers that one of the two gave."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vlm_trt.calibration.divergence import ANSWERS, TOKENS, Followed, chosen, divergence, follow
from vlm_trt.evaluation.evaluate import conversation
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.options import Options


def followed(*logits: list[float]) -> list[Followed]:
    return [Followed(tuple(range(len(logits))), np.array(logits, np.float32))]


def test_the_same_probabilities_are_not_apart() -> None:
    """Whatever is added to all logits of a step."""
    apart = divergence(followed([0, 1, 2], [5, 5, 5]), followed([100, 101, 102], [-5, -5, -5]))
    assert apart.mean == pytest.approx(0, abs=1e-6) and apart.tokens == 2 and apart.answers == 1


def test_the_divergence_is_of_the_second_from_the_first() -> None:
    half, quarter = [0.0, 0.0], [float(np.log(3)), 0.0]
    apart = divergence(followed(half, half), followed(quarter, half))
    expected = 0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25)
    assert apart.largest == pytest.approx(expected) and apart.mean == pytest.approx(expected / 2)


def test_what_one_never_says_costs_much_and_stays_finite() -> None:
    apart = divergence(followed([0, 0]), followed([0, -400]))
    assert 150 < apart.mean < 250


@pytest.mark.parametrize("count", [1, 5, 16, 17, 1000])
def test_questions_are_chosen_evenly(count: int) -> None:
    numbers = chosen(count)
    assert len(numbers) == min(count, ANSWERS) and numbers[0] == 0 and numbers[-1] < count
    assert max(np.diff([*numbers, count]), default=1) <= -(-count // ANSWERS)


def test_the_logits_along_an_answer_choose_it(demo_bundle: Callable[[str], Path]) -> None:
    """Pictures, cache and positions are those of an answer."""
    model = load(demo_bundle("fp32"), backend="cpu")
    questions = synthetic(6, 5).examples
    asked = [conversation(question) for question in questions]
    answers = [answer.ids for answer in model.generate_batch(asked, Options(greedy=True))]
    for answer, one in zip(answers, follow(model, questions, answers), strict=True):
        assert one.ids == answer[:TOKENS] and tuple(one.logits.argmax(axis=-1)) == one.ids
    again = [answer.ids for answer in model.generate_batch(asked, Options(greedy=True))]
    assert again == answers
