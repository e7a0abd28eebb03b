"""A data set asked of a real bundle: the original's answers score 1, pictures are read late, errors are named."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.questions import FOLDER, TOKENS, example, golden_data, golden_ids, run_of
from vlm_trt.bundle.errors import ImageError, PromptError
from vlm_trt.evaluation import dataset
from vlm_trt.evaluation.dataset import DataSet, ImageSource
from vlm_trt.evaluation.evaluate import TaskScore, evaluate
from vlm_trt.evaluation.intervals import wilson
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.model import VisionLanguageModel

PICTURE = FOLDER / "one-image" / "a.png"
SLOTS = 3


@pytest.fixture
def model(verified: Callable[..., Path]) -> VisionLanguageModel:
    return load(verified("ntk-256"), backend="cpu", threads=1)


def data_of(*examples: object) -> DataSet:
    return DataSet("made", "0" * 64, examples)  # type: ignore[arg-type]


def test_the_originals_answers_score_one(model: VisionLanguageModel, tmp_path: Path) -> None:
    data = golden_data(tmp_path)
    seen: list[int] = []
    found = evaluate(model, data, TOKENS, progress=seen.append)
    assert seen == [1, 2, 3, 4]
    for one, case in zip(found.answers, ("text", "one-image", "two-images", "multi-turn-box"), strict=True):
        assert list(one.ids) == golden_ids(case) and one.score == 1, case
        assert one.finish_reason == "length" and one.milliseconds > 0 and one.dropped_turns == 0
    assert found.tasks == (
        TaskScore("text", "exact", 1, 1.0, 1.0, wilson(1, 1)),
        TaskScore("pictures", "exact", 3, 1.0, 1.0, wilson(3, 3)),
    )
    assert found.overall == TaskScore("all", "exact", 4, 1.0, 1.0, wilson(4, 4))


def test_two_runs_give_the_same_answers(model: VisionLanguageModel, tmp_path: Path) -> None:
    data = golden_data(tmp_path)
    first, second = (evaluate(model, data, 8) for _ in range(2))
    assert [one.ids for one in first.answers] == [one.ids for one in second.answers]
    assert first.tasks == second.tasks


def test_a_picture_is_read_when_its_example_starts(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for its prompt's length, one after the other; then never more than there are slots ahead of the answers."""
    count = 8
    reads = -count  # those before the first question is asked
    read_picture = dataset.read_picture

    def counted(path: Path) -> bytes:
        nonlocal reads
        reads += 1
        return read_picture(path)

    def check(answered: int) -> None:
        assert reads - answered <= SLOTS
        answers.append(answered)

    answers: list[int] = []
    monkeypatch.setattr(dataset, "read_picture", counted)
    source = ImageSource("a.png", PICTURE)
    evaluate(model, data_of(*(example(f"made:{i}", images=(source,)) for i in range(count))), 2, check)
    assert reads == count and answers == list(range(1, 9))


def test_a_question_too_long_is_named_before_the_first_answer(model: VisionLanguageModel) -> None:
    long = example("data.jsonl:9", prompt="word " * 800)
    answered: list[int] = []
    with pytest.raises(
        PromptError, match="^data.jsonl:9: the prompt has .* tokens, and the bundle holds 700 positions"
    ):
        evaluate(model, data_of(example("data.jsonl:8"), long), 2, answered.append)
    assert answered == []


def test_a_picture_that_vanishes_is_named_and_the_slots_come_back(model: VisionLanguageModel) -> None:
    gone = example("data.jsonl:2", images=(ImageSource("gone.png", Path("gone.png")),))
    for _ in range(SLOTS + 1):
        with pytest.raises(ImageError, match="^data.jsonl:2: gone.png cannot be read"):
            evaluate(model, data_of(example("data.jsonl:1"), gone), 2)


def test_history_that_does_not_fit_is_counted(model: VisionLanguageModel) -> None:
    turns = tuple(("word " * 30, "word " * 30) for _ in range(10))
    found = evaluate(model, data_of(replace(example("made:1"), history=turns)), 2)
    assert found.answers[0].dropped_turns > 0


def test_scores_are_summed_up_per_task_and_in_all() -> None:
    found = run_of(("colour", (1,), 1.0), ("count", (2,), 0.5), ("colour", (3,), 0.0))
    colour, count = found.tasks
    assert (colour.task, colour.n, colour.score, colour.exact) == ("colour", 2, 0.5, 0.5)
    assert colour.interval == wilson(1, 2)
    assert (count.task, count.n, count.score, count.exact, count.interval.method) == ("count", 1, 0.5, 0.0, "unknown")
    assert (found.overall.n, found.overall.score) == (3, 0.5)
