"""`vlm-trt evaluate`: questions with known answers, a table per task, and what changed since a baseline."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.errors import ScoreError, UsageError
from vlm_trt.bundle.output import STANDARD_OUTPUT, require_output, write_output
from vlm_trt.commands.baseline import chosen, is_precision
from vlm_trt.commands.terminal import count_bar, printable, say, table
from vlm_trt.commands.values import EVERY_TASK
from vlm_trt.evaluation.baseline import Baseline, Difference, compare
from vlm_trt.evaluation.dataset import SYNTHETIC, DataSet, read_data
from vlm_trt.evaluation.evaluate import Evaluation, Judged, TaskScore, evaluate
from vlm_trt.evaluation.intervals import Interval
from vlm_trt.evaluation.metrics import Facts, Reference
from vlm_trt.evaluation.result import Result, as_baseline, document, dumps, read_baseline, setup_of
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.family import family
from vlm_trt.runtime.choice import Choice, choose

COUNT, SEED, NEW_TOKENS = 400, 0, 64
_ROUNDING = 1e-9  # of a mean
SHOWN_ABSENT = 5  # of a caption's phrases that must not be said


def run(
    bundle: Path,
    data: str,
    count: int | None,
    seed: int | None,
    max_new_tokens: int | None,
    least: Sequence[tuple[str, float]],
    output: Path | None,
    as_json: bool,
    show_wrong: int,
    **choices: Any,
) -> None:
    if output is not None:
        require_output(output, read=[Path(one) for one in (data, choices["baseline"]) if one is not None])
    choice, earlier = _choose(bundle, **choices)
    longest = NEW_TOKENS if max_new_tokens is None else max_new_tokens
    examples = _examples(choice, data, count, seed)
    _require_tasks(examples, [task for task, _ in least])
    if isinstance(earlier, Baseline):
        earlier.require_same_questions(examples, longest)
    elif earlier is not None:
        earlier = as_baseline(_answered(earlier, examples, longest))
    result = _answered(choice, examples, longest)
    if earlier is not None:
        comparison = compare(result.evaluation, result.setup.tokenizer_sha256, earlier)
        result = replace(result, comparison=comparison)
    text = dumps(document(result))
    if output is not None:
        write_output(output, text)
    if output != STANDARD_OUTPUT:
        click.echo(text if as_json else _shown(result, show_wrong), nl=not as_json)
    for note in _notes(result):
        say(note)
    if output not in (None, STANDARD_OUTPUT):
        say(f"wrote {output}")
    _require_scores(result.evaluation, least)


def _require_tasks(data: DataSet, tasks: Sequence[str]) -> None:
    """
    Raises:
        UsageError: no example is of such a task.
    """
    known = dict.fromkeys([EVERY_TASK, *(one.task for one in data.examples)])
    for task in tasks:
        if task not in known:
            raise UsageError(f"{data.name} has no task {task!r} for --min-score; choose from {', '.join(known)}")


def _require_scores(found: Evaluation, least: Sequence[tuple[str, float]]) -> None:
    """
    Raises:
        ScoreError: a task scored less than it has to.
    """
    below = [
        f"{_line(one.task)} ({one.metric or 'several metrics'}) scored {one.score:.6g} and should score {score:g} at "
        "least"
        for task, score in least
        for one in (*found.tasks, found.overall)
        if one.task == task and one.score < score - _ROUNDING
    ]
    if below:
        raise ScoreError(f"{'; '.join(below)}; see which answers are wrong with --show-wrong")


def _choose(
    bundle: Path,
    precision: str | None,
    backend: str,
    threads: int | None,
    unverified: bool,
    baseline: str | None,
    baseline_precision: str | None,
) -> tuple[Choice, Choice | Baseline | None]:
    """What answers, and what it is compared with; refused now rather than after a long run."""
    options: dict[str, Any] = {"backend": backend, "threads": threads, "allow_unverified": unverified}
    choice = choose(bundle, precision=precision, **options)
    if baseline is not None and (is_precision(baseline) or Path(baseline).is_dir()) and baseline_precision is None:
        return choice, chosen(bundle, baseline, options)
    if baseline is not None and Path(baseline).is_dir():
        return choice, choose(Path(baseline), precision=baseline_precision, **options)
    if baseline_precision is not None:
        raise UsageError("--baseline-precision needs a bundle as --baseline; give one, or leave it out")
    return choice, None if baseline is None else read_baseline(Path(baseline))


def _examples(choice: Choice, data: str, count: int | None, seed: int | None) -> DataSet:
    model = choice.bundle.manifest.model
    if data == SYNTHETIC:
        return synthetic(COUNT if count is None else count, SEED if seed is None else seed, model)
    if count is not None or seed is not None:
        raise UsageError(f"--count and --seed are about --data {SYNTHETIC}; leave them out, a file is asked whole")
    say(f"  checking every line and picture of {data} ...")
    return read_data(Path(data), family(model.family).parser(model))


def _answered(choice: Choice, data: DataSet, max_new_tokens: int) -> Result:
    """One bundle's run; it is out of memory when this returns."""
    model = choice.load()
    setup = setup_of(model, str(choice.bundle.path), max_new_tokens)
    if not setup.verified:
        say(f"warning: {setup.precision} graphs are used without being verified")
    with count_bar(f"{choice.bundle.path.name} {setup.precision}", len(data.examples)) as bar:
        evaluation = evaluate(model, data, max_new_tokens, progress=lambda _: bar.update(1))
    return Result(data, setup, evaluation)


def _shown(result: Result, show_wrong: int) -> str:
    """Everything a person reads on stdout."""
    evaluation, comparison = result.evaluation, result.comparison
    rows = [_row(score) for score in (*evaluation.tasks, evaluation.overall)]
    header: tuple[str, ...] = ("task", "metric", " n", " score", " 95 % interval", " exact")
    if comparison is not None:
        differences = (*comparison.tasks, comparison.overall)
        rows = [(*row, *_change(difference)) for row, difference in zip(rows, differences, strict=True)]
        header = (*header, " baseline", " difference", " 95 % interval", " same answers", " same tokens")
    blocks = [table(rows, header), *_wrong(evaluation.answers, show_wrong)]
    return "\n\n".join(blocks)


def _row(score: TaskScore) -> tuple[str, ...]:
    shown = f"{score.score:.3f}", _range(score.interval, ""), f"{score.exact:.3f}"
    return _line(score.task), score.metric or "several", str(score.n), *shown


def _change(difference: Difference) -> tuple[str, ...]:
    return (
        f"{difference.baseline_score:.3f}",
        f"{difference.difference:+.3f}",
        _range(difference.interval, "+"),
        _share(difference.same_answers),
        _share(difference.same_tokens),
    )


def _range(interval: Interval, sign: str) -> str:
    return f"{interval.low:{sign}.3f} … {interval.high:{sign}.3f}"


def _share(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _wrong(answers: Sequence[Judged], limit: int) -> list[str]:
    """The first wrong answers, a block for each."""
    wrong = [one for one in answers if one.score < 1][:limit]
    return [
        f"{_line(one.example.name)}  {_line(one.example.task)}, {one.example.metric} {one.score:.3f}\n"
        f"  asked      {_line(one.example.prompt)}\n"
        f"  reference  {_line(stated(one.example.reference))}\n"
        f"  answer     {_line(one.text)}"
        for one in wrong
    ]


def stated(reference: Reference) -> str:
    """A reference in a line."""
    match reference:
        case str():
            return reference
        case Facts():
            more = f", … ({len(reference.absent)} in all)" if len(reference.absent) > SHOWN_ABSENT else ""
            absent = ", ".join(reference.absent[:SHOWN_ABSENT]) + more
            return ", ".join(reference.present) + (f"; not {absent}" if absent else "")
        case _:
            return " | ".join(reference)


def _line(text: str) -> str:
    """Text of a data set or a model on one line that cannot steer the terminal."""
    return " ".join(printable(text).split())


def _notes(result: Result) -> list[str]:
    """What the table does not say."""
    evaluation: Evaluation = result.evaluation
    n = len(evaluation.answers)
    notes = [f"{n} examples of {result.data.name}: {result.label}, {evaluation.seconds:.1f} s"]
    if cut := sum(one.finish_reason == "length" for one in evaluation.answers):
        notes.append(f"{cut} answers were cut at {result.setup.max_new_tokens} tokens; --max-new-tokens allows more")
    if dropped := sum(one.dropped_turns > 0 for one in evaluation.answers):
        notes.append(f"{dropped} examples lost their oldest turns: the window is full")
    if result.comparison is not None:
        notes.append(f"baseline: {result.comparison.baseline}")
        if result.comparison.overall.same_answers is None:
            notes.append("the baseline has another tokenizer, so tokens are not compared")
    return notes
