"""The verdict on quantized graphs: their answers against those of the graphs they were made from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import MakeBar
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.divergence import Divergence, Followed, chosen, divergence, follow
from vlm_trt.calibration.recipe import require_max_drop
from vlm_trt.calibration.rewrite import LayerError
from vlm_trt.evaluation.baseline import Comparison, Difference, compare
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.evaluate import evaluate
from vlm_trt.evaluation.result import Result, as_baseline, setup_of
from vlm_trt.runtime.choice import Choice
from vlm_trt.runtime.ort import CpuBackend

NEW_TOKENS = 64
_NAMED_LAYERS = 5
_LEAST_SCORE = 0.1  # of the float graphs


@dataclass(frozen=True)
class Asked:
    """The answers of some graphs, and their logits along the float graphs' answers."""

    result: Result
    followed: tuple[Followed, ...]


@dataclass(frozen=True)
class Verdict:
    """What the quantization costs in answers; the divergence is told, not judged."""

    comparison: Comparison
    divergence: Divergence
    failures: tuple[str, ...]  # sentences
    questions: DataSet
    max_drop: float
    seconds_before: float = 0.0  # that the questions took the float graphs here
    seconds: float = 0.0  # and the quantized ones
    notes: tuple[str, ...] = ()  # of the audit, where there was one

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def judges(self) -> bool:
        """Whether the float graphs answer enough of the questions to tell by them what became worse."""
        return self.comparison.overall.baseline_score >= _LEAST_SCORE

    def refusal(self, precision: Precision) -> str:
        """Why these answers do not pass, for a sentence."""
        why = "; ".join(self.failures)
        if not self.judges:
            return f"whether the {precision} answers hold cannot be told by these questions: {why}"
        return f"the {precision} answers are too much worse ({why})"


def judge(before: Asked, after: Asked, max_drop: float) -> Verdict:
    """Whether no task lost more than allowed, from the float graphs' answers to the quantized ones'.

    A task of few questions may lose the share of one answer: less cannot be told from chance. All of them together may
    not, and where the float graphs answer next to nothing right, no answer of others can be called worse.

    Raises:
        UsageError: `max_drop` is no share, so that it would let nothing or anything pass.
    """
    require_max_drop(max_drop)
    now = after.result
    comparison = compare(now.evaluation, now.setup.tokenizer_sha256, as_baseline(before.result))
    failures = [
        f"{one.task} fell from {one.baseline_score:.3f} to {one.baseline_score + one.difference:.3f}, by more than "
        f"{allowed(one, max_drop):.3f}"
        for one in comparison.tasks
        if not -one.difference <= allowed(one, max_drop) + 1e-9
    ]
    overall = comparison.overall
    if not -overall.difference <= max_drop + 1e-9:
        fell_to = overall.baseline_score + overall.difference
        failures.append(
            f"all together fell from {overall.baseline_score:.3f} to {fell_to:.3f}, by more than {max_drop:.3f}"
        )
    if not overall.baseline_score >= _LEAST_SCORE:  # what they lost of that says nothing
        failures = [
            f"the float graphs answer next to nothing right ({overall.baseline_score:.3f}); give questions with "
            "--evaluate that the model can answer"
        ]
    apart = divergence(before.followed, after.followed)
    took = before.result.evaluation.seconds, now.evaluation.seconds
    return Verdict(comparison, apart, tuple(failures), now.data, max_drop, *took)


def record(bundle: Bundle, precision: Precision, verdict: Verdict, report: Mapping[str, Any]) -> None:
    """The verdict into the manifest, about the bundle's graphs as they are, and the report beside it."""
    overall = verdict.comparison.overall
    figures = {
        "score": overall.baseline_score + overall.difference,
        "difference": overall.difference,
        "max_drop": verdict.max_drop,
        "divergence": verdict.divergence.mean,
    }
    path = report_path(precision)
    entry = bundle.manifest.verdict(precision, CpuBackend.name, verdict.passed, path, figures)
    bundle.record(entry, as_text({**report, "judged": as_json(verdict)}))


def record_refusal(bundle: Bundle, precision: Precision, failures: Sequence[str], report: Mapping[str, Any]) -> None:
    """A failed verdict, without a question asked."""
    judged = {"passed": False, "failures": list(failures)}
    entry = bundle.manifest.verdict(precision, CpuBackend.name, passed=False, report=report_path(precision), figures={})
    bundle.record(entry, as_text({**report, "judged": judged}))


def report_path(precision: Precision) -> str:
    return f"reports/quantization-{precision}.json"


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The verdict as JSON values."""
    questions = verdict.questions
    return {
        "passed": verdict.passed,
        "failures": verdict.failures,
        "max_drop": verdict.max_drop,
        "questions": {"name": questions.name, "sha256": questions.sha256, "count": len(questions.examples)},
        "tasks": [asdict(one) for one in verdict.comparison.tasks],
        "overall": asdict(verdict.comparison.overall),
        "divergence": asdict(verdict.divergence),
        "notes": verdict.notes,
        "seconds": {"before": round(verdict.seconds_before, 2), "after": round(verdict.seconds, 2)},
    }


def as_text(report: Mapping[str, Any]) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def ask(choice: Choice, questions: DataSet, count_bar: MakeBar, floats: Asked | None = None) -> Asked:
    """Greedy answers to every question; the graphs are out of memory when this returns.

    Args:
        choice: the graphs.
        questions: all of them are asked.
        count_bar: a progress bar for a label and a number of questions.
        floats: what the float graphs answered, whose answers are followed; None where these are the float graphs.
    """
    model = choice.load()
    with count_bar(f"ask {choice.precision}", len(questions.examples)) as bar:
        found = evaluate(model, questions, NEW_TOKENS, progress=lambda _: None if bar is None else bar.update(1))
    result = Result(questions, setup_of(model, str(choice.bundle.path), NEW_TOKENS), found)
    given = result if floats is None else floats.result
    numbers = chosen(len(questions.examples))
    answers = [given.evaluation.answers[at].ids for at in numbers]
    return Asked(result, tuple(follow(model, [questions.examples[at] for at in numbers], answers)))


def allowed(one: Difference, max_drop: float) -> float:
    """How much of its score a task may lose."""
    return max(max_drop, 1 / one.n)


def costliest(errors: tuple[LayerError, ...]) -> str:
    """The layers with the largest error, for a sentence."""
    worst = sorted(errors, key=lambda one: -one.error)[:_NAMED_LAYERS]
    return ", ".join(f"{one.layer} ({one.error:.1%})" for one in worst)
