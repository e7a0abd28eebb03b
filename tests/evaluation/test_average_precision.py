"""Average precision: of an example worked out by hand, and by a second way to compute it; and our IoU beside it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from vlm_trt.evaluation.annotations import Annotation, Annotations, Box, Category, Picture
from vlm_trt.evaluation.average_precision import Answer, BoxScores, box_scores, detections

NAMES = {1: "dog", 7: "cat"}
WHOLE = (0.0, 0.0, 40.0, 40.0)  # 1600 square pixels: medium


def annotations(found: Sequence[tuple[int, int, Box, bool]], pictures: int = 3) -> Annotations:
    """Those boxes (picture, category, box, crowd) in so many pictures."""
    return Annotations(
        "made.json",
        tuple(Category(*one) for one in NAMES.items()),
        tuple(Picture(number, f"{number}.png", Path(f"{number}.png"), (200, 200)) for number in range(pictures)),
        tuple(Annotation(*one[:3], one[2][2] * one[2][3], one[3]) for one in found),
    )


def scored(data: Annotations, found: dict[tuple[int, int], Sequence[Box]], malformed: int = 0) -> BoxScores:
    """The figures of those boxes, with nothing found of every other name and picture."""
    empty = {(picture.id, category.id): Answer((), ()) for picture in data.pictures for category in data.categories}
    said = {at: Answer(tuple(boxes), (None,) * len(boxes), malformed) for at, boxes in found.items()}
    return box_scores(data, empty | said)


def narrower(box: Box, share: float) -> Box:
    """A box in it whose IoU with it is that share."""
    return (*box[:2], box[2] * share, box[3])


def test_by_hand() -> None:
    """Two dogs in a picture; the answer: one exactly, one where nothing is, the other with an IoU of 0.825.

    Up to IoU 0.80 (7 thresholds) precision is 1 at recalls 0 … 0.5 (51 points of 101) and 2/3 at the 50 beyond; at
    the 3 thresholds above, 1 at 51 points and 0 at the others.
    """
    other: Box = (100.0, 100.0, 40.0, 40.0)
    data = annotations([(0, 1, WHOLE, False), (0, 1, other, False)])
    scores = scored(data, {(0, 1): [WHOLE, (60.0, 0.0, 40.0, 40.0), narrower(other, 0.825)]})
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    expected = {
        "AP": (7 * low + 3 * high) / 10, "AP50": low, "AP75": low, "APs": None, "APm": (7 * low + 3 * high) / 10,
        "APl": None, "AR1": 0.5, "AR10": 0.85, "AR100": 0.85, "ARs": None, "ARm": 0.85, "ARl": None,
        "IoU": 1.825 / 3, "absent": 1.0,
    }  # fmt: skip
    assert scores.figures.keys() == expected.keys()
    for name, value in expected.items():
        assert scores.figures[name] == (None if value is None else pytest.approx(value, abs=1e-9)), name
    assert scores.by_category == {"dog": pytest.approx(expected["AP"]), "cat": None}
    assert (scores.present, scores.absent) == (1, 5)


def test_names_that_are_not_there_cost_precision() -> None:
    """The reason why every name is asked about every picture."""
    data = annotations([(2, 1, WHOLE, False), (2, 7, WHOLE, False)])
    right = {(2, 1): [WHOLE], (2, 7): [WHOLE]}
    assert scored(data, right).figures["AP"] == pytest.approx(1)
    made_up = scored(data, right | {(0, 1): [WHOLE], (1, 1): [WHOLE]})
    assert made_up.by_category == {"dog": pytest.approx(1 / 3), "cat": pytest.approx(1)}
    assert (made_up.figures["IoU"], made_up.figures["absent"]) == (1, 0.5)


def test_crowds_are_neither_missed_nor_found() -> None:
    data = annotations([(0, 1, (0.0, 0.0, 100.0, 100.0), True), (0, 1, (120.0, 120.0, 40.0, 40.0), False)])
    inside: Box = (10.0, 10.0, 30.0, 30.0)
    scores = scored(data, {(0, 1): [inside, (50.0, 50.0, 30.0, 30.0), (120.0, 120.0, 40.0, 40.0)]})
    assert scores.figures["AP"] == pytest.approx(1) and scores.figures["AR100"] == 1
    assert (scores.figures["IoU"], scores.present, scores.absent) == (None, 0, 5)


def test_what_cannot_be_read_is_found_nowhere() -> None:
    data = annotations([(0, 1, WHOLE, False)])
    scores = scored(data, {(0, 1): [WHOLE], (1, 7): []}, malformed=1)
    assert (scores.figures["IoU"], scores.figures["absent"]) == (0.5, 0.8)


def test_results_are_as_coco_has_them() -> None:
    data = annotations([(1, 7, WHOLE, False)])
    answers = {(1, 7): Answer((WHOLE,), (0.25,)), (0, 1): Answer((WHOLE,), (None,))}
    assert json.loads(json.dumps(detections(data, answers))) == [
        {"image_id": 0, "category_id": 1, "bbox": list(WHOLE), "score": 1.0},
        {"image_id": 1, "category_id": 7, "bbox": list(WHOLE), "score": 0.25},
    ]


def test_scores_rank_the_boxes() -> None:
    """The better box second, and known to be better."""
    data = annotations([(0, 1, WHOLE, False)])
    boxes = ((100.0, 100.0, 40.0, 40.0), WHOLE)
    for scores, expected in (((0.2, 0.9), 1.0), ((None, None), 0.5)):
        answers = {(0, 1): Answer(boxes, scores), (0, 7): Answer((), ())}
        assert box_scores(data, answers).figures["AP"] == pytest.approx(expected)


def test_a_second_way_to_compute_it_agrees() -> None:
    """Random boxes of one name, all medium: COCO's matching and 101 points of recall, written down again."""
    draw = random.Random(7)
    for _ in range(20):
        wanted = {at: [moved(draw, WHOLE, 120) for _ in range(draw.randrange(4))] for at in range(3)}
        found = {
            at: [moved(draw, draw.choice(boxes), 6) for _ in range(draw.randrange(4))] if boxes else [WHOLE]
            for at, boxes in wanted.items()
        }
        if not any(wanted.values()):
            continue
        data = annotations([(at, 1, box, False) for at, boxes in wanted.items() for box in boxes])
        figures = scored(data, {(at, 1): boxes for at, boxes in found.items()}).figures
        by_threshold = [precision(wanted, found, (50 + 5 * at) / 100) for at in range(10)]
        assert figures["AP"] == pytest.approx(sum(by_threshold) / 10, abs=1e-9)
        assert figures["AP50"] == pytest.approx(by_threshold[0], abs=1e-9)


def moved(draw: random.Random, box: Box, most: float) -> Box:
    return box[0] + draw.uniform(0, most), box[1] + draw.uniform(0, most), box[2], box[3]


def overlap(one: Box, other: Box) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (one[2] * one[3] + other[2] * other[3] - shared)


def precision(wanted: dict[int, list[Box]], found: dict[int, list[Box]], threshold: float) -> float:
    """AP at one threshold: each box found takes the best one that is left."""
    right = list[bool]()
    for at, boxes in found.items():
        left = list(wanted[at])
        for box in boxes:
            best = max(left, key=lambda one: overlap(one, box), default=None)
            right.append(best is not None and overlap(best, box) >= threshold)
            if right[-1]:
                left.remove(best)  # type: ignore[arg-type]
    total, points = sum(map(len, wanted.values())), []
    for recall in (step / 100 for step in range(101)):
        hits = [(sum(right[: n + 1]), n + 1) for n in range(len(right))]
        points.append(max((hit / n for hit, n in hits if hit / total >= recall - 1e-12), default=0.0))
    return sum(points) / 101
