"""What changed since an earlier run, by hand."""

import pytest

from tests.evaluation.questions import example, run_of
from vlm_trt.bundle.errors import DataSetError, UsageError
from vlm_trt.evaluation.baseline import Baseline, EarlierAnswer, compare
from vlm_trt.evaluation.dataset import DataSet

NOW = run_of(("colour", (1, 2, 3), 1.0), ("colour", (1, 2), 0.0), ("count", (7, 8, 9, 9), 1.0))


def baseline(*answers: tuple[tuple[int, ...], float], tokenizer: str = "t") -> Baseline:
    return Baseline("earlier.json", "a" * 64, tokenizer, 64, tuple(EarlierAnswer(*answer) for answer in answers))


def test_a_run_agrees_with_itself() -> None:
    found = compare(NOW, "t", baseline(*((one.ids, one.score) for one in NOW.answers)))
    for difference in (*found.tasks, found.overall):
        assert difference.difference == difference.interval.low == difference.interval.high == 0 or difference.n == 1
        assert difference.same_answers == difference.same_tokens == 1


def test_differences_by_hand() -> None:
    found = compare(NOW, "t", baseline(((1, 2, 3), 1.0), ((1, 5), 1.0), ((7, 8), 0.5)))
    colour, count = found.tasks
    assert (colour.baseline_score, colour.difference, colour.same_answers) == (1.0, -0.5, 0.5)
    assert colour.same_tokens == 4 / 5  # 3 of 3 and 1 of 2
    assert (colour.interval.low, colour.interval.high, colour.interval.method) == (-1, 0, "bootstrap")
    assert (count.baseline_score, count.difference, count.same_answers) == (0.5, 0.5, 0.0)
    assert count.same_tokens == 2 / 4  # a beginning of the other: the rest is a difference
    assert (count.interval.low, count.interval.high, count.interval.method) == (-1, 1, "unknown")
    assert found.overall.n == 3 and found.overall.same_tokens == 6 / 9
    assert found.overall.difference == pytest.approx(-1 / 6)  # −1, 0 and ½ over 3
    assert found.baseline == "earlier.json"


def test_pairing_makes_the_interval_narrow() -> None:
    """Scores vary widely between examples, the change is the same in each: only pairs can show it."""
    now = run_of(*(("ocr", (1,), 0.1 + at % 8 / 10) for at in range(80)))
    then = baseline(*(((1,), at % 8 / 10) for at in range(80)))
    change, score = compare(now, "t", then).overall.interval, now.overall.interval
    assert change.low == pytest.approx(0.1) and change.high == pytest.approx(0.1)
    assert score.high - score.low > 0.05


def test_tokens_of_another_tokenizer_are_not_compared() -> None:
    found = compare(NOW, "other", baseline(*((one.ids, one.score) for one in NOW.answers)))
    assert found.overall.same_answers is None and found.overall.same_tokens is None
    assert found.overall.difference == 0


def test_a_baseline_of_other_questions_is_refused() -> None:
    earlier, data = baseline(((1,), 1.0)), DataSet("data.jsonl", "a" * 64, (example("data.jsonl:1"),))
    earlier.require_same_questions(data, 64)
    other = r"earlier.json is about another data set \(sha256 a{12}…, that of data.jsonl is b{12}…\); evaluate the base"
    with pytest.raises(DataSetError, match=other):
        earlier.require_same_questions(DataSet("data.jsonl", "b" * 64, data.examples), 64)
    with pytest.raises(DataSetError, match="earlier.json has 1 answers to 2 examples; evaluate the baseline again"):
        earlier.require_same_questions(DataSet("data.jsonl", "a" * 64, data.examples * 2), 64)
    with pytest.raises(UsageError, match="made with --max-new-tokens 64, this run has 32; add --max-new-tokens 64"):
        earlier.require_same_questions(data, 32)
