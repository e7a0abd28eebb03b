"""A model asked every question of a data set, its answers judged, the scores summed up per task."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from vlm_trt.bundle.errors import UsageError
from vlm_trt.evaluation.dataset import DataSet, Example, Query
from vlm_trt.evaluation.intervals import Interval, interval
from vlm_trt.evaluation.metrics import score
from vlm_trt.families.family import family
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.timing import PARTS

# Called with the answers so far, after each one.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """One answer with its score."""

    example: Example
    text: str  # as generated, with the model's tags
    ids: tuple[int, ...]
    score: float  # 0…1
    milliseconds: float  # its own stages, and every decode step it shared with the others in flight
    finish_reason: str  # "stop", or "length" where the answer was cut
    dropped_turns: int  # oldest turns of its history left out because the window was full


@dataclass(frozen=True)
class TaskScore:
    """How well the examples of one task, judged by one metric, were answered."""

    task: str
    metric: str  # "" where there are several
    n: int
    score: float  # mean
    exact: float  # share of examples with score 1
    interval: Interval  # of the mean


@dataclass(frozen=True)
class Evaluation:
    answers: tuple[Judged, ...]  # in the data set's order
    tasks: tuple[TaskScore, ...]  # in the order the data set first names them
    overall: TaskScore  # every example counts once, whatever its task
    seconds: float


def evaluate(
    model: VisionLanguageModel, data: DataSet, max_new_tokens: int = 64, progress: Progress = lambda _: None
) -> Evaluation:
    """The model's greedy answers to every example, judged.

    As many examples as the bundle has slots are in flight; a picture is read when its example starts and forgotten
    when it ends. The same bundle, backend and data give the same answers.

    Args:
        model: a loaded bundle.
        data: questions and references.
        max_new_tokens: longest answer; a longer one is cut, and judged as it is.
        progress: called with the number of answers so far.
    Raises:
        PromptError, ImageError: an example cannot be asked; it is named.
    """
    started = perf_counter()
    about = data.name

    def conversations() -> Iterator[Sequence[Message]]:
        nonlocal about
        for example in data.examples:
            about = example.name
            yield conversation(example)

    judged: dict[int, Judged] = {}
    try:
        for unasked in conversations():  # a long run must not end at a prompt that is too long
            model.build_prompt(unasked)
        # A step a token: when drafts are checked depends on the clock, and with it how sums are rounded.
        options = Options(greedy=True, max_new_tokens=max_new_tokens, speculation=False)
        for at, answer in model.answer_each(conversations(), options):
            if isinstance(answer, Exception):
                about = data.examples[at].name
                raise answer
            judged[at] = _judged(model, data.examples[at], answer)
            progress(len(judged))
    except UsageError as error:
        raise type(error)(f"{about}: {error}") from error
    answers = tuple(judged[at] for at in range(len(data.examples)))
    return summed_up(answers, perf_counter() - started)


def summed_up(answers: tuple[Judged, ...], seconds: float) -> Evaluation:
    """Those answers with their scores per task and in all."""
    metrics = {one.example.metric for one in answers}
    return Evaluation(
        answers=answers,
        tasks=tuple(
            _task_score(task, metric, [answers[at] for at in numbers])
            for (task, metric), numbers in rows(answers).items()
        ),
        overall=_task_score("all", metrics.pop() if len(metrics) == 1 else "", answers),
        seconds=seconds,
    )


def rows(answers: Sequence[Judged]) -> dict[tuple[str, str], list[int]]:
    """Numbers of the answers of each task and metric, in the order they first come."""
    found: dict[tuple[str, str], list[int]] = {}
    for at, one in enumerate(answers):
        found.setdefault((one.example.task, one.example.metric), []).append(at)
    return found


def conversation(example: Query) -> list[Message]:
    """The turns of an example, its pictures before the first: read now.

    Raises:
        ImageError: a picture cannot be read.
    """
    images = [Image(source.read(), source.name) for source in example.images]
    turns = [*example.history, (example.prompt, None)]
    messages: list[Message] = []
    for user, assistant in turns:
        messages.append(Message("user", (*(() if messages else images), Text(user))))
        if assistant is not None:
            messages.append(Message("assistant", (Text(assistant),)))
    return messages


def _judged(model: VisionLanguageModel, example: Example, answer: Answer) -> Judged:
    parse = family(model.manifest.model.family).parser(model.engine.model)
    return Judged(
        example=example,
        text=answer.text,
        ids=answer.ids,
        score=score(example.metric, answer.text, example.reference, lambda text: parse(text, answer.image_sizes)),
        milliseconds=sum(ms for stage, ms in answer.stages_ms.items() if stage not in PARTS),
        finish_reason=answer.finish_reason,
        dropped_turns=answer.dropped_turns,
    )


def _task_score(task: str, metric: str, answers: Sequence[Judged]) -> TaskScore:
    scores = [one.score for one in answers]
    n = len(scores)
    return TaskScore(task, metric, n, sum(scores) / n, sum(score == 1 for score in scores) / n, interval(scores))
