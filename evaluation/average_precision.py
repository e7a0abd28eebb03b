"""Boxes that a model found against COCO annotations: average precision by `pycocotools`, and our own IoU beside it."""

import io
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from vlm_trt.evaluation.annotations import Annotations, Box
from vlm_trt.evaluation.metrics import box_iou
from vlm_trt.families.messages import Answered, Grounding

# What COCO calls its twelve figures, in the order in which `COCOeval.stats` has them.
FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
IOU, ABSENT = "IoU", "absent"
NO_SCORE = 1.0  # of a box that the model gives none: nearly every one


@dataclass(frozen=True)
class Answer:
    """What was found of one name in one picture."""

    boxes: tuple[Box, ...]  # in the order of the answer
    scores: tuple[float | None, ...]  # one for each
    malformed: int = 0  # places that could not be read


# (picture, category) → answer, for every name asked about every picture.
Answers = Mapping[tuple[int, int], Answer]


@dataclass(frozen=True)
class BoxScores:
    """Figures from 0 to 1; None where no box is of that size, or no question of that kind."""

    figures: dict[str, float | None]  # FIGURES, IOU and ABSENT
    by_category: dict[str, float | None]  # AP of each name
    present: int  # questions about names that are in the picture
    absent: int  # and about names that are not


def box_scores(data: Annotations, answers: Answers) -> BoxScores:
    """How well the answers find what the annotations say.

    Args:
        data: what there is to find.
        answers: to every question.
    Source: COCO's own evaluation, with its bounds of sizes (32² and 96² pixels) and at most 100 boxes of a name.
    """
    judged = _judged(data, answers)
    figures = {name: _known(value) for name, value in zip(FIGURES, judged.stats, strict=True)}
    # [IoU thresholds, recalls, categories by their ids, areas, most boxes]: all areas, 100 boxes
    precision = judged.eval["precision"][:, :, :, 0, -1]
    names = {one.id: one.name for one in data.categories}
    by_category = {names[number]: _known(_mean(precision[:, :, at])) for at, number in enumerate(judged.params.catIds)}
    present, absent = _overlaps(data, answers)
    own = {IOU: sum(present) / len(present) if present else None}
    own[ABSENT] = sum(absent) / len(absent) if absent else None
    return BoxScores(figures | own, by_category, len(present), len(absent))


def detections(data: Annotations, answers: Answers) -> list[dict[str, Any]]:
    """The boxes as COCO has results, in the order of the pictures: any other tool reads them."""
    return [
        {
            "image_id": picture,
            "category_id": category,
            "bbox": list(box),
            "score": NO_SCORE if score is None else score,
        }
        for (picture, category), answer in sorted(answers.items())
        for box, score in zip(answer.boxes, answer.scores, strict=True)
    ]


def _judged(data: Annotations, answers: Answers) -> Any:
    """A `COCOeval` that has summed up."""
    wanted = [
        {
            "image_id": one.picture,
            "category_id": one.category,
            "bbox": list(one.box),
            "area": one.area,
            "iscrowd": int(one.crowd),
        }
        for one in data.annotations
    ]
    found = [one | {"area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0} for one in detections(data, answers)]
    with redirect_stdout(io.StringIO()):  # it prints what it does
        judged = COCOeval(_indexed(data, wanted), _indexed(data, found), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return judged


def _indexed(data: Annotations, annotations: Iterable[dict[str, Any]]) -> Any:
    """Annotations as its own class; numbered from 1, since it takes a match with number 0 for none."""
    made = COCO()
    made.dataset = {
        "images": [{"id": one.id, "width": one.size[0], "height": one.size[1]} for one in data.pictures],
        "categories": [{"id": one.id, "name": one.name} for one in data.categories],
        "annotations": [one | {"id": at} for at, one in enumerate(annotations, 1)],
    }
    made.createIndex()
    return made


def _overlaps(data: Annotations, answers: Answers) -> tuple[list[float], list[float]]:
    """`box_iou` of every question about a name that is in the picture; and of every other one, 1 where the answer is
    right: nothing. Questions about crowds are in neither, since nobody knows how many boxes are right."""
    crowds = {(one.picture, one.category) for one in data.annotations if one.crowd}
    wanted: dict[tuple[int, int], list[Box]] = {}
    for one in data.annotations:
        wanted.setdefault((one.picture, one.category), []).append(one.box)
    present, absent = list[float](), list[float]()
    for question, answer in answers.items():
        if question in crowds:
            continue
        score = box_iou(_answered(answer.boxes, answer.malformed), _answered(wanted.get(question, ())))
        (present if question in wanted else absent).append(score)
    return present, absent


def _answered(boxes: Iterable[Box], malformed: int = 0) -> Answered:
    corners = (((left, top), (left + width, top + height)) for left, top, width, height in boxes)
    return Answered("", tuple(Grounding("", "box", two, 0) for two in corners), malformed)


def _mean(values: np.ndarray) -> float:
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0


def _known(value: float) -> float | None:
    """COCO's −1 is: nothing to find."""
    return None if value < 0 else float(value)
