"""Pictures of several tiles and of any size: each keeps its own features, whatever it is asked with."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from vlm_trt.bundle.config import within
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.families.messages import Detail, Image, Message
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.chat import Chat
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.features import FeatureCache, ImageFeatures
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.timing import StageClock

GREEDY = Options(greedy=True, max_new_tokens=6, ignore_eos=True)


def drawn(width: int, height: int, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    data = BytesIO()
    PillowImage.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def model(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> VisionLanguageModel:
    return load(exported(request.param), backend="cpu", threads=1, allow_unverified=True)


def values(one: ImageFeatures) -> np.ndarray:
    read = to_float32(one.buffer.read(), "float32")
    return read[one.first : one.first + one.tiles]


def encoded(model: VisionLanguageModel, images: Sequence[Image]) -> list[ImageFeatures]:
    """By a cache that knows nothing yet."""
    return FeatureCache(model.engine, model._family).encode(images, StageClock())


@pytest.mark.parametrize("model", ["smolvlm2"], indirect=True)
def test_a_picture_is_not_taken_for_itself_looked_at_otherwise(model: VisionLanguageModel) -> None:
    cache, data = FeatureCache(model.engine, model._family), drawn(70, 45)
    looks = [Image(data, detail=detail) for detail in (Detail.HIGH, Detail.LOW)]
    high, low = cache.encode(looks, StageClock())
    assert (high.tiles, low.tiles) == (5, 1) and cache.encoded_images == 2
    assert np.array_equal(values(high)[-1:], values(low)) is False  # the whole of it comes by another way
    again = [cache.encode([one], StageClock())[0] for one in reversed(looks)]
    assert again == [low, high] and cache.encoded_images == 2
    answers = [model.generate([Message("user", [one, "What?"])], options=GREEDY) for one in (*looks, *looks)]
    assert answers[0].prompt_ids != answers[1].prompt_ids
    assert [one.ids for one in answers[:2]] == [one.ids for one in answers[2:]]
    assert answers[0].ids != answers[1].ids and answers[3].reused_tokens > 0


@pytest.mark.parametrize("model", ["smolvlm2", "qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_pictures_asked_together_have_the_features_that_each_has_alone(model: VisionLanguageModel) -> None:
    sizes = ((70, 45), (40, 64), (70, 45), (33, 33))
    images = [Image(drawn(*size, seed=at)) for at, size in enumerate(sizes)]
    for one, together in zip(images, encoded(model, images), strict=True):
        (alone,) = encoded(model, [one])
        assert together.size == alone.size == one.size
        assert np.abs(values(together) - values(alone)).max() <= 1e-4


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_another_size_is_another_number_of_tokens(model: VisionLanguageModel) -> None:
    prompts = [model.build_prompt([Message("user", [Image(drawn(*size))])]) for size in ((70, 45), (20, 20), (64, 8))]
    # Tokens of 8×8 pixels, at most 2,048 pixels in all; 20 lies between 16 and 24 and becomes the even multiple.
    assert [prompt.picture_tokens for prompt in prompts] == [28, 4, 8]
    conversation = [Message("user", [Image(drawn(70, 45)), "and", Image(drawn(20, 20)), "?"])]
    first, second = model.generate_batch([conversation, conversation], GREEDY)
    assert first.ids == second.ids and first.image_sizes == ((70, 45), (20, 20))


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_bounds_of_a_picture_are_a_picture_of_its_own(model: VisionLanguageModel) -> None:
    """One picture looked at in three ways, in one process and one conversation: as engines have it that know no other
    bounds."""
    data, cache = drawn(70, 45), FeatureCache(model.engine, model._family)
    looks = [Image(data), Image(data, max_pixels=1024), Image(data, min_pixels=1536, max_pixels=1536)]
    together = cache.encode(looks, StageClock())
    assert cache.encoded_images == 3 and cache.encode(looks[::-1], StageClock()) == together[::-1]
    answers = [model.generate([Message("user", [one, "What?"])], options=GREEDY) for one in (*looks, *looks)]
    assert [one.ids for one in answers[:3]] == [one.ids for one in answers[3:]]
    assert [one.reused_tokens > 0 for one in answers[3:]] == [True] * 3
    within_bounds = model.engine.model
    for one, found, answer in zip(looks, together, answers, strict=False):
        limits = replace(model.engine.limits, min_pixels=one.min_pixels, max_pixels=one.max_pixels)
        model.engine.model = within(within_bounds, limits)
        model.generator.forget()
        (alone,) = encoded(model, [Image(data)])
        assert np.array_equal(values(alone), values(found))
        fresh = model.generate([Message("user", [Image(data), "What?"])], options=GREEDY)
        assert (fresh.prompt_ids, fresh.ids, fresh.reused_tokens) == (answer.prompt_ids, answer.ids, 0)
    assert [one.features().shape[1] for one in together] == [28, 12, 18]
    assert len({answer.ids for answer in answers}) > 1


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_a_conversation_keeps_how_its_pictures_were_looked_at(model: VisionLanguageModel) -> None:
    data = drawn(70, 45)
    chat = Chat(model)
    first, second = (
        next(piece for piece in chat.stream([Image(data, max_pixels=bound), "?"], GREEDY) if isinstance(piece, Answer))
        for bound in (1024, None)
    )
    assert second.reused_tokens >= len(first.prompt_ids) and second.image_sizes == ((70, 45), (70, 45))
    model.generator.forget()
    again = model.generate([*chat.messages[:2], Message("user", [Image(data), "?"])], options=GREEDY)
    assert (again.ids, again.reused_tokens) == (second.ids, 0)


@pytest.mark.parametrize("model", ["qwen2_5_vl"], indirect=True)
def test_a_picture_that_memory_does_not_hold_is_refused_before_it_is_looked_at(
    model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier picture took is kept for the next."""
    available = 1 << 18
    monkeypatch.setattr("vlm_trt.runtime.ort.available_bytes", lambda: available)
    with pytest.raises(
        ResourceError, match=r"1 picture of 112 patches takes about 0\.0 GiB .* give a max_pixels of \d+"
    ):
        model.generate("What?", [drawn(70, 45)], GREEDY)
    available = 1 << 20
    first = model.generate("What?", [drawn(70, 45)], GREEDY)
    available = 0
    assert model.generate("What?", [drawn(70, 45)], GREEDY).ids == first.ids


@pytest.mark.parametrize("model", ["smolvlm2"], indirect=True)
def test_what_features_take_is_bounded(model: VisionLanguageModel) -> None:
    one = 5 * 4 * 60 * 4  # tiles, tokens, width, bytes
    cache = FeatureCache(model.engine, model._family, max_bytes=2 * one)
    images = [Image(drawn(70, 45, seed)) for seed in range(4)]
    for image in images:
        cache.encode([image], StageClock())
    assert [cache.known([image]) is None for image in images] == [True, True, False, False]
    together = cache.encode(images, StageClock())  # all of one request are kept, however many they are
    assert len(together) == 4 and all(cache.known([image]) is not None for image in images)
