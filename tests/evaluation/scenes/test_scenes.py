"""Scenes are what they say: nothing overlaps, the picture shows it, and training never sees what is held out."""

import re
from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest

from vlm_trt.evaluation.metrics import Facts, score
from vlm_trt.evaluation.scenes.dataset import held_out_examples
from vlm_trt.evaluation.scenes.questions import Asker, draw_language
from vlm_trt.evaluation.scenes.render import draw_scene
from vlm_trt.evaluation.scenes.scene import (
    COLOURS,
    SHAPES,
    SIZES,
    Box,
    Scene,
    Split,
    Thing,
    held_out_combination,
    held_out_number,
    sample_scene,
)
from vlm_trt.evaluation.scenes.words import CHINESE, ENGLISH, full_name
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.images import decode_image
from vlm_trt.families.qwen_vl.grounding import parse_answer


def scenes(split: Split, count: int, seed: int = 0) -> list[Scene]:
    random = np.random.default_rng(seed)
    return [sample_scene(random, split) for _ in range(count)]


def test_a_seed_is_a_scene() -> None:
    assert scenes("train", 20) == scenes("train", 20) != scenes("train", 20, seed=1)


def test_training_never_sees_what_is_held_out() -> None:
    for scene in scenes("train", 400):
        assert not any(held_out_combination(t.colour, t.shape, t.size) for t in scene.things)
        assert scene.writing is None or not scene.writing.is_number or not held_out_number(int(scene.writing.text))
    for scene in scenes("held_out", 400):
        assert any(held_out_combination(t.colour, t.shape, t.size) for t in scene.things)
        assert scene.writing is None or not scene.writing.is_number or held_out_number(int(scene.writing.text))


def test_every_colour_shape_and_size_is_seen_in_training() -> None:
    held_out = [c for c in ((c, s, z) for c in COLOURS for s in SHAPES for z in SIZES) if held_out_combination(*c)]
    assert len(held_out) == 12
    assert set(Counter(shape for _, shape, _ in held_out).values()) == {2}
    assert 60 < sum(map(held_out_number, range(1000))) < 140


def test_nothing_overlaps_or_leaves_the_picture() -> None:
    for scene in scenes("train", 200):
        boxes: list[Box] = [thing.box for thing in scene.things]
        boxes += [scene.writing.box] if scene.writing else []
        for a, b in combinations(boxes, 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        assert all(0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1 for box in boxes)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_its_box_and_no_more(shape: str) -> None:
    thing = Thing("red", shape, "large", (0.25, 0.5, 0.5, 0.75))
    picture = np.asarray(draw_scene(Scene(200, (120, 120, 120), None, (thing,), None)))
    rows, columns = np.nonzero((picture == COLOURS["red"]).all(-1))
    found = np.array((columns.min(), rows.min(), columns.max(), rows.max()))
    assert np.abs(found - np.array((50, 100, 100, 150))).max() <= 1


def test_every_letter_stands_in_its_place_as_high_as_the_box() -> None:
    for scene in scenes("train", 60):
        if scene.writing is None:
            continue
        plain = Scene(scene.side, scene.background, None, (), scene.writing)
        ink = np.abs(np.asarray(draw_scene(plain, scale=2)).astype(int) - scene.background).max(-1) > 30
        side = ink.shape[0]
        for left, top, right, bottom in scene.writing.places():
            rows, columns = np.nonzero(ink[:, round(left * side) : round(right * side)])
            assert abs(rows.min() - top * side) <= 2 and abs(rows.max() + 1 - bottom * side) <= 2, scene.writing
            middle = (columns.min() + columns.max() + 1) / 2
            assert abs(middle - (right - left) * side / 2) <= 2, scene.writing
        outside = ink.copy()
        left, top, right, bottom = (round(edge * side) for edge in scene.writing.box)
        outside[top:bottom, left:right] = False
        assert not outside.any()


def test_the_reference_answer_scores_full_marks_and_another_does_not() -> None:
    examples = list(held_out_examples(300, seed=5))
    right = 0
    for example, other in pairwise(examples):
        sizes = [decode_image(image.read()).size for image in example.images]

        def read(text: str, sizes: list[tuple[int, int]] = sizes) -> object:
            return parse_answer(text, sizes)

        reference = example.reference
        answer = ", ".join(reference.present) if isinstance(reference, Facts) else str(reference)
        assert score(example.metric, answer, reference, read) == 1, example  # type: ignore[arg-type]
        if isinstance(other.reference, str) and other.reference != example.reference:
            right += score(example.metric, other.reference, reference, read) == 1  # type: ignore[arg-type]
    assert right == 0
    tasks = Counter(example.task for example in examples)
    assert set(tasks) == {
        "caption", "colour", "count", "relation", "read", "ground", "compare", "chat", "chat_ground"
    }  # fmt: skip


def test_a_caption_names_every_thing_and_nothing_else() -> None:
    for scene in scenes("held_out", 50):
        for language in (ENGLISH, CHINESE):
            asker = Asker(np.random.default_rng(0), (scene,), language)
            from vlm_trt.evaluation.scenes.questions import caption

            said = caption(asker).answer
            for thing in scene.things:
                assert full_name(thing, language) in said
            assert (scene.writing is None) or scene.writing.text in said


def test_counts_and_relations_are_those_of_the_scene() -> None:
    """English questions are read back and answered from the scene by other means."""
    random = np.random.default_rng(3)
    seen: Counter[str] = Counter()
    for _ in range(1500):
        scene = sample_scene(random, "train")
        question = Asker(random, (scene,), ENGLISH).ask()
        if question.task == "count":
            noun = re.sub(r"^(How many|Count the) | are there\?| are in the picture\?|\.$", "", question.prompt)
            matching = [
                t
                for t in scene.things
                if all(word == "shapes" or word[:4] in (t.colour[:4], t.shape[:4]) for word in noun.split())
            ]
            assert question.answer == str(len(matching)), (question, scene)
        elif match := re.fullmatch(r"Is the (.+) (?:left or right of|above or below) the (.+)\?", question.prompt):
            one, other = (
                next(t for t in scene.things if all(w in (t.size, t.colour, t.shape) for w in name.split()))
                for name in match.groups()
            )
            axis = 0 if "left" in question.prompt else 1
            first = one.box[axis] + one.box[axis + 2] < other.box[axis] + other.box[axis + 2]
            assert question.answer == (("left", "above")[axis] if first else ("right", "below")[axis])
        seen[question.task] += 1
    assert seen["count"] > 100 and seen["relation"] > 100


def test_the_synthetic_set_is_known_by_its_hash() -> None:
    assert synthetic(20, 0).sha256 == synthetic(20, 0).sha256 != synthetic(20, 1).sha256


def test_both_languages_are_drawn() -> None:
    random = np.random.default_rng(0)
    assert {id(draw_language(random)) for _ in range(50)} == {id(ENGLISH), id(CHINESE)}
