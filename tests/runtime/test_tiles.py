"""Pictures of several tiles and of any size: each keeps its own features, whatever it is asked with."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from vlm_trt.families.messages import Detail, Image, Message
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.features import FeatureCache, ImageFeatures
from vlm_trt.runtime.model import VisionLanguageModel
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
