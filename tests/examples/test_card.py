"""The model card says what the stored scores say, and the scores are counted as the card says."""

import json

import pytest

from examples.demo_model.card import AIMS, CARD, SCORES, reached, with_table
from vlm_trt.evaluation.intervals import wilson


def answer(task: str, metric: str, text: str, reference: str, score: float) -> dict[str, object]:
    return {"task": task, "metric": metric, "text": text, "reference": reference, "score": score}


def test_the_card_is_made_from_the_stored_scores() -> None:
    card = CARD.read_text(encoding="utf-8")
    assert with_table(card, json.loads(SCORES.read_text(encoding="utf-8"))) == card


def test_what_belongs_to_an_aim_and_how_it_is_counted() -> None:
    answers = [
        answer("colour", "exact", "red", "red", 1),
        answer("colour", "exact", "blue", "red", 0),
        answer("count", "exact", "4", "4", 1),
        answer("count", "exact", "4", "5", 0),  # more than four: not aimed at
        answer("relation", "exact", "left", "left", 1),
        answer("read", "edit_distance", "12", "123", 2 / 3),
        answer("read", "edit_distance", "7", "7", 1),
        answer("read", "edit_distance", "STOP", "EXIT", 0.25),  # a word
        answer("ground", "box_iou", "", "", 0.5),
        answer("chat_ground", "box_iou", "", "", 0.7),
        answer("chat", "exact", "red", "red", 1),
    ]
    found = {one["aim"]: one for one in (reached(aim, answers) for aim in AIMS)}
    values = {name: (one["n"], one["reached"]) for name, one in found.items()}
    assert values == {
        "colour of a thing": (2, 0.5),
        "count up to four": (1, 1.0),
        "relation of two things": (1, 1.0),
        "printed numbers": (4, 0.75),  # characters
        "boxes": (2, pytest.approx(0.6)),
    }
    assert found["printed numbers"]["interval"]["low"] == wilson(3, 4).low
