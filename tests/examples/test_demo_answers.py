"""The whole chain on a model that sees: export → verify → run, in all tasks, streamed, in turns, batched, in fp16."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from examples.demo_model.agreement import agreement
from examples.demo_model.card import FOLDER, SCORES
from examples.demo_model.draw_scene import SCENE
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.evaluate import Evaluation, conversation, evaluate
from vlm_trt.evaluation.metrics import score
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.messages import Image, Text
from vlm_trt.families.qwen_vl.grounding import parse_answer, write_places
from vlm_trt.runtime.chat import Chat
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options

PICTURE = (FOLDER / "scene.png").read_bytes()
THINGS = {thing.colour: thing for thing in SCENE.things}
GREEDY = Options(greedy=True)
DemoBundle = Callable[[str], Path]


@pytest.fixture(scope="module")
def model(demo_bundle: DemoBundle) -> VisionLanguageModel:
    return load(demo_bundle("fp32"), backend="cpu", threads=1)


@pytest.fixture(scope="module")
def held_out() -> DataSet:
    return synthetic(300, seed=1)


@pytest.fixture(scope="module")
def answered(model: VisionLanguageModel, held_out: DataSet) -> Evaluation:
    return evaluate(model, held_out)


def iou_of(answer: str, reference: str) -> float:
    return score("box_iou", answer, reference, lambda text: parse_answer(text, [(640, 640)]))


def test_every_task_is_answered_as_the_card_says(answered: Evaluation) -> None:
    """Other scenes than the card's: what it says lies in the interval that they leave, for every task."""
    card = {task["task"]: task["score"] for task in json.loads(SCORES.read_text())["tasks"]}
    assert {task.task for task in answered.tasks} == set(card)
    for task in answered.tasks:
        assert task.interval.high >= card[task.task] - 0.02, task


def test_the_graphs_answer_as_the_modules_do(demo_bundle: DemoBundle, held_out: DataSet) -> None:
    """Id for id; `python -m examples.demo_model.agreement` does the same for a thousand."""
    tasks = dict.fromkeys(example.task for example in held_out.examples)
    examples = [e for task in tasks for e in [e for e in held_out.examples if e.task == task][:4]]
    assert len(tasks) == 9
    found = agreement(demo_bundle("fp32"), examples)
    assert (found.equal, found.count) == (len(examples), len(examples))


def test_fp16_answers_as_fp32_does(demo_bundle: DemoBundle, held_out: DataSet, answered: Evaluation) -> None:
    some = replace(held_out, examples=held_out.examples[:120])
    half = evaluate(load(demo_bundle("fp16"), precision="fp16", backend="cpu", threads=1), some)
    same = sum(one.ids == other.ids for one, other in zip(half.answers, answered.answers, strict=False))
    assert same >= 116


def test_a_batch_of_all_tasks_answers_each_as_alone(
    model: VisionLanguageModel, held_out: DataSet, answered: Evaluation
) -> None:
    """`evaluate` had four in flight at a time; prompts of one picture, of two, and of two turns beside each other."""
    for example, together in zip(held_out.examples[:40], answered.answers, strict=False):
        alone = model.generate(conversation(example), options=replace(GREEDY, max_new_tokens=64))
        assert alone.ids == together.ids, example.name


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What colour is the circle?", "red"),
        ("正方形是什么颜色？", "黄色"),
        ("Which number is in the picture?", "56"),
        ("Is the circle left or right of the square?", "right"),
        ("Which is larger, the square or the circle?", "the square"),
    ],
)
def test_questions_about_the_shipped_picture(model: VisionLanguageModel, prompt: str, expected: str) -> None:
    assert model.generate(prompt, images=[PICTURE], options=GREEDY).plain_text == expected


def test_the_shipped_picture_is_described(model: VisionLanguageModel) -> None:
    said = model.generate("What is in the picture?", images=[PICTURE], options=GREEDY).plain_text
    for thing in SCENE.things:
        assert f"{thing.size} {thing.colour} {thing.shape}" in said
    assert "the number 56" in said


def test_boxes_lie_on_the_things_they_name(model: VisionLanguageModel) -> None:
    answer = model.generate("Find all stars.", images=[PICTURE], options=GREEDY)
    assert iou_of(answer.text, write_places("stars", [THINGS["green"].box, THINGS["orange"].box])) >= 0.8
    assert [place.name for place in answer.groundings] == ["stars", "stars"]
    left, top = (640 * share for share in THINGS["green"].box[:2])
    assert answer.groundings[0].points[0] == pytest.approx((left, top), abs=16)  # pixels of the original


def test_a_second_turn_refers_to_the_first_and_prefills_only_what_is_new(model: VisionLanguageModel) -> None:
    chat = Chat(model)
    asked = [(Image(PICTURE), Text("Where is the circle?")), (Text("What colour is it?"),)]
    where, colour = (list(chat.stream(parts, GREEDY))[-1] for parts in asked)
    assert isinstance(where, Answer) and isinstance(colour, Answer)
    assert iou_of(where.text, write_places("the circle", [THINGS["red"].box])) >= 0.8
    assert colour.plain_text == "red"
    assert colour.reused_tokens >= len(where.prompt_ids)


def test_a_stream_is_the_answer_in_pieces(model: VisionLanguageModel) -> None:
    *pieces, answer = model.stream("找出圆形。", images=[PICTURE], options=GREEDY)
    assert isinstance(answer, Answer) and len(pieces) > 5
    assert "".join(str(piece) for piece in pieces) == answer.text
    assert iou_of(answer.text, write_places("圆形", [THINGS["red"].box])) >= 0.8
