"""The held-out set: questions about scenes that the demo model's training never saw, with what judges the answers."""

from collections.abc import Iterator

import numpy as np

from vlm_trt.evaluation.dataset import Example, ImageSource, Sample
from vlm_trt.evaluation.metrics import Facts, Reference
from vlm_trt.evaluation.scenes.questions import TALKATIVE, Asker, Manner, Question, draw_language
from vlm_trt.evaluation.scenes.render import draw_scene, encode_png
from vlm_trt.evaluation.scenes.scene import COLOURS, SHAPES, SIZES, Scene, Split, sample_scene
from vlm_trt.evaluation.scenes.words import Language, full_name

# Far from the seeds of any training run.
_SEED = 0x5EED_0000
_CALIBRATION_SEED = 0x5EED_0001
_METRICS = {"caption": "caption_facts", "read": "edit_distance", "ground": "box_iou"}


def held_out_examples(count: int, seed: int, manner: Manner = TALKATIVE) -> Iterator[Example]:
    """Questions of all tasks in both languages, one in five about two pictures.

    Args:
        count: how many.
        seed: other seeds give other scenes.
        manner: of the model that is asked.
    """
    return _examples(np.random.default_rng((_SEED, seed)), count, seed, "held_out", manner)


def calibration_samples(count: int, seed: int, manner: Manner = TALKATIVE) -> Iterator[Sample]:
    """Questions as the training asks them, with their answers: no picture of them is held out, none was trained on."""
    for example in _examples(np.random.default_rng((_CALIBRATION_SEED, seed)), count, seed, "train", manner):
        answer = example.reference if isinstance(example.reference, str) else None
        yield Sample(
            name=example.name, prompt=example.prompt, images=example.images, history=example.history, answer=answer
        )


def _examples(random: np.random.Generator, count: int, seed: int, split: Split, manner: Manner) -> Iterator[Example]:
    for number in range(count):
        scenes = tuple(sample_scene(random, split) for _ in range(2 if number % 5 == 4 else 1))
        language = draw_language(random)
        question = Asker(random, scenes, language, manner).ask()
        pictures = tuple(
            ImageSource(f"scene-{seed}-{number}-{i}.png", data=encode_png(draw_scene(scene)))
            for i, scene in enumerate(scenes)
        )
        yield _example(f"synthetic:{number}", question, scenes[-1], language, pictures)


def _example(
    name: str, question: Question, scene: Scene, language: Language, pictures: tuple[ImageSource, ...]
) -> Example:
    boxes = question.names_places
    task = "chat_ground" if question.task == "chat" and boxes else question.task
    reference: Reference = caption_facts(scene, language) if task == "caption" else question.answer
    return Example(
        name=name,
        task=task,
        prompt=question.prompt,
        reference=reference,
        metric="box_iou" if boxes else _METRICS.get(task, "exact"),
        images=pictures,
        history=question.history,
    )


def caption_facts(scene: Scene, language: Language) -> Facts:
    """Everything a caption has to name, and every other thing it must not."""
    present = {full_name(thing, language) for thing in scene.things}
    possible = {
        language.name(language.sizes[size], language.colours[colour], language.shapes[shape])
        for size in SIZES
        for colour in COLOURS
        for shape in SHAPES
    }
    kinds = {language.writing("", is_number).strip() for is_number in (True, False)}
    if scene.writing is not None:
        present.add(language.writing(scene.writing.text, scene.writing.is_number))
        kinds.discard(language.writing("", scene.writing.is_number).strip())
    return Facts(present=tuple(sorted(present)), absent=tuple(sorted((possible | kinds) - present)))
