"""Writes the scores of an evaluation into the model card, beside what was aimed at.

    vlm-trt evaluate BUNDLE --data synthetic --count 2000 -o result.json
    python -m examples.demo_model.card result.json

`held_out.json` keeps the result without its answers; the card's table is made from that.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_trt.evaluation.intervals import interval, wilson
from vlm_trt.evaluation.metrics import levenshtein

FOLDER = Path(__file__).parent
CARD = FOLDER / "checkpoint" / "README.md"
SCORES = FOLDER / "held_out.json"
BEGIN, END = "<!-- scores: made by examples/demo_model/card.py -->", "<!-- end of scores -->"

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """One of the things the model was made for, and how much of it is wanted."""

    name: str
    unit: str
    wanted: float
    belongs: Callable[[Answer], bool]


AIMS = (
    Aim("colour of a thing", "exact answers", 0.95, lambda one: one["task"] == "colour"),
    Aim("count up to four", "exact answers", 0.95, lambda one: one["task"] == "count" and int(one["reference"]) <= 4),
    Aim("relation of two things", "exact answers", 0.95, lambda one: one["task"] == "relation"),
    Aim("printed numbers", "characters", 0.90, lambda one: one["task"] == "read" and one["reference"].isdigit()),
    Aim("boxes", "mean IoU", 0.80, lambda one: one["metric"] == "box_iou"),
)


def reached(aim: Aim, answers: Sequence[Answer]) -> dict[str, Any]:
    """Share or mean of the answers that belong to the aim, with its 95 % interval."""
    own = [one for one in answers if aim.belongs(one)]
    if aim.unit == "characters":
        characters = sum(max(len(one["text"]), len(one["reference"])) for one in own)
        wrong = sum(levenshtein(one["text"], one["reference"]) for one in own)
        found = wilson(characters - wrong, characters)
        value, count = 1 - wrong / characters, characters
    else:
        scores = [one["score"] for one in own]
        value, count, found = sum(scores) / len(scores), len(scores), interval(scores)
    return {
        "aim": aim.name, "unit": aim.unit, "wanted": aim.wanted, "reached": value, "n": count,
        "interval": asdict(found),
    }  # fmt: skip


def scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result without its answers, and what of the aims it reaches."""
    kept = {name: value for name, value in result.items() if name not in ("answers", "comparison")}
    return kept | {"aims": [reached(aim, result["answers"]) for aim in AIMS]}


def table(found: Mapping[str, Any]) -> str:
    """The card's two tables, in Markdown."""
    setup = found["setup"]
    lines = [f"{found['data']['name'].capitalize()}, {setup['precision']} on {setup['backend']}, greedy.", ""]
    lines += ["| aim | wanted | reached | 95 % interval | n |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {one['aim']}: {one['unit']} | ≥ {one['wanted']:.2f} | {one['reached']:.3f} | {_span(one)} | {one['n']} |"
        for one in found["aims"]
    ]
    lines += ["", "| task | metric | mean score | 95 % interval | exact | n |", "| --- | --- | --- | --- | --- | --- |"]
    lines += [
        f"| {one['task']} | {one['metric']} | {one['score']:.3f} | {_span(one)} | {one['exact']:.3f} | {one['n']} |"
        for one in found["tasks"]
    ]
    return "\n".join(lines)


def _span(one: Mapping[str, Any]) -> str:
    return f"{one['interval']['low']:.3f} … {one['interval']['high']:.3f}"


def with_table(card: str, found: Mapping[str, Any]) -> str:
    """The card with its tables replaced."""
    before, rest = card.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    found = scores(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    SCORES.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    CARD.write_text(with_table(CARD.read_text(encoding="utf-8"), found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
