"""The verdict on quantized graphs: their answers against those of the graphs they were made from."""

from collections.abc import Callable
from dataclasses import dataclass

from calibration.rewrite import LayerError
from evaluation.baseline import Comparison, Difference, compare
from evaluation.dataset import DataSet
from evaluation.evaluate import Evaluation, evaluate
from evaluation.result import Result, as_baseline, setup_of
from runtime.model import Choice

NEW_TOKENS = 64
_NAMED_LAYERS = 5


@dataclass(frozen=True)
class Verdict:
    """What the quantization costs in answers."""

    comparison: Comparison
    failures: tuple[str, ...]  # sentences

    @property
    def passed(self) -> bool:
        return not self.failures


def answers(choice: Choice, data: DataSet, progress: Callable[[int], None]) -> Result:
    """The graphs' greedy answers to every question; they are out of memory when this returns."""
    model = choice.load()
    found: Evaluation = evaluate(model, data, NEW_TOKENS, progress=lambda _: progress(1))
    return Result(data, setup_of(model, str(choice.bundle.path), NEW_TOKENS), found)


def judge(quantized: Result, unquantized: Result, max_drop: float) -> Verdict:
    """Whether no task lost more than allowed.

    A task of few questions may lose the share of one answer: less cannot be told from chance.
    """
    tokenizer = quantized.setup.tokenizer_sha256
    comparison = compare(quantized.evaluation, tokenizer, as_baseline(unquantized))
    failures = [
        f"{one.task} fell from {one.baseline_score:.3f} to {one.baseline_score + one.difference:.3f}, by more than "
        f"{allowed(one, max_drop):.3f}"
        for one in (*comparison.tasks, comparison.overall)
        if -one.difference > allowed(one, max_drop) + 1e-9
    ]
    return Verdict(comparison, tuple(failures))


def allowed(one: Difference, max_drop: float) -> float:
    """How much of its score a task may lose."""
    return max(max_drop, 1 / one.n)


def costliest(errors: tuple[LayerError, ...]) -> str:
    """The layers with the largest error, for a sentence."""
    worst = sorted(errors, key=lambda one: -one.error)[:_NAMED_LAYERS]
    return ", ".join(f"{one.layer} ({one.error:.1%})" for one in worst)
