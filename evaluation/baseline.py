"""An earlier run over the same data set, and what has changed since."""

from collections.abc import Sequence
from dataclasses import dataclass

from vlm_trt.bundle.errors import DataSetError, UsageError
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.evaluate import Evaluation, rows
from vlm_trt.evaluation.intervals import Interval, bootstrap


@dataclass(frozen=True)
class EarlierAnswer:
    ids: tuple[int, ...]
    score: float


@dataclass(frozen=True)
class Baseline:
    """What of an earlier run is compared."""

    label: str
    data_sha256: str
    tokenizer_sha256: str
    max_new_tokens: int
    answers: tuple[EarlierAnswer, ...]

    def require_same_questions(self, data: DataSet, max_new_tokens: int) -> None:
        """
        Raises:
            DataSetError: the runs were not asked the same. UsageError: their answers end at different lengths.
        """
        if self.data_sha256 != data.sha256:
            raise DataSetError(
                f"{self.label} is about another data set (sha256 {self.data_sha256[:12]}…, that of {data.name} is "
                f"{data.sha256[:12]}…); evaluate the baseline on this data set"
            )
        if len(self.answers) != len(data.examples):
            raise DataSetError(
                f"{self.label} has {len(self.answers)} answers to {len(data.examples)} examples; evaluate the baseline "
                "again"
            )
        if self.max_new_tokens != max_new_tokens:
            raise UsageError(
                f"{self.label} was made with --max-new-tokens {self.max_new_tokens}, this run has {max_new_tokens}; "
                f"add --max-new-tokens {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class Difference:
    """One task, now against the baseline."""

    task: str
    metric: str
    n: int
    baseline_score: float  # mean
    difference: float  # mean score now − then
    interval: Interval  # of the difference: paired bootstrap
    same_answers: float | None  # share of answers with identical ids; None where the tokenizers differ
    same_tokens: float | None  # tokens before the first difference / tokens of the longer answer, over all answers


@dataclass(frozen=True)
class Comparison:
    baseline: str
    tasks: tuple[Difference, ...]
    overall: Difference


def compare(now: Evaluation, tokenizer_sha256: str, earlier: Baseline) -> Comparison:
    """What changed from the baseline to now, per task and in all.

    Args:
        now: of the same data set as the baseline.
        tokenizer_sha256: of the bundle that answered now; with another one than then, tokens are not compared.
        earlier: the baseline.
    """
    same_tokenizer = tokenizer_sha256 == earlier.tokenizer_sha256

    def difference(task: str, metric: str, numbers: Sequence[int]) -> Difference:
        pairs = [(now.answers[at], earlier.answers[at]) for at in numbers]
        changes = [new.score - old.score for new, old in pairs]
        ids = [(new.ids, old.ids) for new, old in pairs]
        n = len(pairs)
        return Difference(
            task=task,
            metric=metric,
            n=n,
            baseline_score=sum(old.score for _, old in pairs) / n,
            difference=sum(changes) / n,
            interval=bootstrap(changes, low=-1.0, high=1.0),
            same_answers=sum(new == old for new, old in ids) / n if same_tokenizer else None,
            same_tokens=_same_tokens(ids) if same_tokenizer else None,
        )

    tasks = tuple(difference(task, metric, numbers) for (task, metric), numbers in rows(now.answers).items())
    overall = difference(now.overall.task, now.overall.metric, range(len(now.answers)))
    return Comparison(earlier.label, tasks, overall)


def _same_tokens(pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    """Tokens before the first difference, as a share of the longer answers' tokens."""
    longest = sum(max(len(new), len(old)) for new, old in pairs)
    same = sum(_shared_beginning(new, old) for new, old in pairs)
    return same / longest if longest else 1.0


def _shared_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    shortest = min(len(one), len(other))
    return next((i for i in range(shortest) if one[i] != other[i]), shortest)
