"""`vlm-trt evaluate --images`: every name of COCO annotations asked about every picture, the boxes found judged."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from vlm_trt.bundle.errors import ScoreError, UsageError
from vlm_trt.bundle.output import STANDARD_OUTPUT, require_output, write_output
from vlm_trt.commands.coco import Folder, places_in
from vlm_trt.commands.terminal import count_bar, printable, say, table
from vlm_trt.commands.values import EVERY_TASK
from vlm_trt.evaluation.annotations import Annotations, checked, read_annotations
from vlm_trt.evaluation.average_precision import (
    ABSENT,
    FIGURES,
    IOU,
    NO_SCORE,
    Answer,
    BoxScores,
    box_scores,
    detections,
)
from vlm_trt.evaluation.result import SCHEMA, Setup, dumps, setup_of
from vlm_trt.families.family import family
from vlm_trt.families.messages import PlaceKind
from vlm_trt.runtime.choice import Choice, choose
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.places import question_of

_ROUNDING = 1e-9
_SIZES = {"s": "small", "m": "medium", "l": "large"}
_MEANING = {
    "AP": "average precision, mean over IoU 0.50 … 0.95",
    "AP50": "at IoU 0.50",
    "AP75": "at IoU 0.75",
    **{f"AP{letter}": f"AP of {size} things" for letter, size in _SIZES.items()},
    **{f"AR{most}": f"average recall, {most} at most of a name and picture" for most in (1, 10, 100)},
    **{f"AR{letter}": f"recall of {size} things" for letter, size in _SIZES.items()},
    IOU: "box_iou of names that are in the picture",
    ABSENT: "names that are not, answered with no box",
}


@dataclass(frozen=True)
class _Result:
    data: Annotations
    sha256: str
    setup: Setup
    question: str
    lines: dict[str, dict[str, Any]]  # of the journal
    answers: dict[tuple[int, int], Answer]
    scores: BoxScores
    seconds: float


def run(
    bundle: Path,
    data: str,
    images: Path,
    names: Sequence[str] | None,
    count: int | None,
    max_new_tokens: int | None,
    least: Sequence[tuple[str, float]],
    output: Path | None,
    as_json: bool,
    unverified: bool,
    **choices: Any,
) -> None:
    _require_figures(least)
    if output is None or output == STANDARD_OUTPUT:
        raise UsageError("--images needs a file for the result, beside which answers are kept; name it with -o")
    require_output(output, read=[Path(data)])
    choice = choose(bundle, allow_unverified=unverified, **choices)
    question = question_of(family(choice.bundle.manifest.model.family), PlaceKind.BOX)
    annotations = read_annotations(Path(data), images, names, count)
    with count_bar("checking pictures", len(annotations.pictures)) as bar:
        digest = checked(annotations, bar.update if bar is not None else lambda _: None)
    folder = _folder(choice, annotations, output, question, {"data": digest, "max_new_tokens": max_new_tokens})
    result = _asked(choice, folder, annotations, digest, max_new_tokens)
    text = dumps(_document(result), "results")
    write_output(output, text)
    folder.journal.unlink(missing_ok=True)
    click.echo(text if as_json else _shown(result.scores), nl=not as_json)
    for note in _notes(result):
        say(note)
    say(f"wrote {output}")
    _require_scores(result.scores, least)


def _folder(choice: Choice, data: Annotations, output: Path, question: str, rest: dict[str, Any]) -> Folder:
    """The pictures, with what an earlier run of exactly this knows of them."""
    manifest, files = choice.bundle.manifest, {one.file: one.path for one in data.pictures}
    graphs = list(manifest.identities(choice.precision))
    rest |= {"precision": choice.precision, "backend": choice.backend.name, "graphs": graphs}
    names = [one.name for one in data.categories]
    return Folder.open(files, output, choice.bundle.path, PlaceKind.BOX, names, question, **rest)


def _asked(choice: Choice, folder: Folder, data: Annotations, digest: str, max_new_tokens: int | None) -> _Result:
    """Every question that is left asked, and all answers judged.

    Raises:
        UsageError: a picture that the model cannot be asked about.
    """
    began, model = perf_counter(), choice.load()
    most = model.manifest.model.generation.max_new_tokens if max_new_tokens is None else max_new_tokens
    setup = setup_of(model, str(choice.bundle.path), most)
    if not setup.verified:
        say(f"warning: {setup.precision} graphs are used without being verified")
    # A step a token, as the other evaluation: drafts depend on the clock, and with it how sums are rounded.
    options = Options(greedy=True, max_new_tokens=max_new_tokens, speculation=False)
    with (
        count_bar(f"{choice.bundle.path.name} {setup.precision}", len(folder.left)) as bar,
        closing(model.answer_each(folder.conversations(), options)) as answers,
    ):
        for at, answer in answers:
            if folder.answered(at, answer) and bar is not None:
                bar.update(1)
    for line in folder.known.values():
        if "error" in line:
            raise UsageError(
                f"{line['file']} cannot be asked about: {line['error']}; leave it out of the annotations, or "
                f"export with other limits (what was answered is in {folder.journal})"
            )
    say("  scoring ...")
    found = _answers(folder, data)
    scores = box_scores(data, found)
    return _Result(data, digest, setup, folder.question, folder.known, found, scores, perf_counter() - began)


def _answers(folder: Folder, data: Annotations) -> dict[tuple[int, int], Answer]:
    """What is known of every name in every picture."""
    found = {}
    for picture in data.pictures:
        line = folder.known[picture.file]
        places = list(places_in(line))
        for category in data.categories:
            own = [one for one in places if one.name == category.name]
            corners = [(*one.points[0], *one.points[1]) for one in own]
            boxes = tuple((left, top, right - left, bottom - top) for left, top, right, bottom in corners)
            malformed = line["malformed"].get(category.name, 0)
            found[picture.id, category.id] = Answer(boxes, tuple(one.score for one in own), malformed)
    return found


def _document(result: _Result) -> dict[str, Any]:
    """The result as JSON values; docs/evaluation.md lists the fields."""
    data, scores, lines = result.data, result.scores, result.lines.values()
    about = {"pictures": len(data.pictures), "boxes": len(data.annotations)}
    asked = {"present": scores.present, "absent": scores.absent}
    lost = {"cut": _cut(result), "malformed": sum(sum(line["malformed"].values()) for line in lines)}
    return {
        "schema": SCHEMA,
        "version": version("vlm-trt"),
        "data": {"name": data.name, "sha256": result.sha256, **about},
        "categories": [asdict(one) for one in data.categories],
        "question": result.question,
        "setup": asdict(result.setup),
        "environment": environment(),
        "seconds": result.seconds,
        "figures": scores.figures,
        "by_category": scores.by_category,
        "questions": {"all": len(result.answers), **asked, **lost},
        "results": detections(data, result.answers),
    }


def _shown(scores: BoxScores) -> str:
    rows = [(name, "–" if value is None else f"{value:.3f}", _MEANING[name]) for name, value in scores.figures.items()]
    return table(rows, ("figure", " value", "meaning"))


def _notes(result: _Result) -> list[str]:
    """What the table does not say."""
    data, setup = result.data, result.setup
    named = f"{len(data.categories)} names about {len(data.pictures)} pictures of {printable(data.name)}"
    notes = [f"{named}: {setup.bundle} in {setup.precision} on {setup.backend}, {result.seconds:.1f} s"]
    given = [score is not None for one in result.answers.values() for score in one.scores]
    if given and not any(given):
        notes.append(
            f"the model gives no scores, so every box has {NO_SCORE:g}: they count in the order of the pictures"
        )
    if cut := _cut(result):
        notes.append(f"{cut} answers were cut at {setup.max_new_tokens} tokens; --max-new-tokens allows more")
    return notes


def _cut(result: _Result) -> int:
    return sum(len(line["cut"]) for line in result.lines.values())


def _require_figures(least: Sequence[tuple[str, float]]) -> None:
    known = (EVERY_TASK, *FIGURES, IOU, ABSENT)
    for name, _ in least:
        if name not in known:
            raise UsageError(f"there is no figure {name!r} for --min-score; choose from {', '.join(known)}")


def _require_scores(scores: BoxScores, least: Sequence[tuple[str, float]]) -> None:
    """
    Raises:
        ScoreError: a figure is less than it has to be, or there is nothing that it is about.
    """
    below = []
    for name, wanted in least:
        figure = FIGURES[0] if name == EVERY_TASK else name
        value = scores.figures[figure]
        if value is None or value < wanted - _ROUNDING:
            is_ = "about nothing in these pictures" if value is None else f"{value:.6g}"
            below.append(f"{figure} is {is_} and should be {wanted:g} at least")
    if below:
        raise ScoreError("; ".join(below))
