"""Bounds of a request: prompt, pixels and places agree on them, and those that a bundle does not hold are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage

from tests.families.made_models import small_model
from tests.families.qwen2_vl.test_prompt import picture
from vlm_trt.bundle.config import ChatFormat, Limits, ModelConfig, within
from vlm_trt.bundle.errors import PromptError
from vlm_trt.families.contract import Family, patch_count
from vlm_trt.families.family import family
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import AS_IT_IS, Detail, Image, Look, Message

NAMES = ("qwen2_vl", "qwen2_5_vl")


@pytest.fixture(params=NAMES)
def checkpoint(request: pytest.FixtureRequest, family_checkpoint: Callable[[str], Path]) -> tuple[Family, Path]:
    return family(request.param), family_checkpoint(request.param)


def model_of(kind: Family, folder: Path) -> ModelConfig:
    """Of tokens of 8×8 pixels, pictures of 256 to 2,048 pixels."""
    return within(kind.read_config(folder), Limits(256, 1, 1, 256, 2048))


@pytest.mark.parametrize(
    "look", [AS_IT_IS, Look(max_pixels=1024), Look(min_pixels=1500), Look(Detail.LOW, 500, 1000)], ids=str
)
def test_prompt_and_pixels_agree(look: Look, checkpoint: tuple[Family, Path]) -> None:
    kind, folder = checkpoint
    model = model_of(kind, folder)
    tokenizer = kind.load_tokenizer(folder / kind.tokenizer_file, model)
    for size in ((70, 45), (20, 20), (9, 60), (1, 1)):
        image = Image(picture(*size), "", look.detail, look.min_pixels, look.max_pixels)
        assert image.look == look
        prompt = kind.build_prompt([Message("user", [image, "?"])], tokenizer, model, 256)
        inputs = kind.preprocess(PillowImage.new("RGB", size), model, look)
        assert prompt.picture_tokens == model.tokens_of(patch_count(inputs, model))
        assert prompt.picture_tokens <= (look.max_pixels or 2048) // 64


@pytest.mark.parametrize(
    ("look", "sentence"),
    [
        (
            Look(max_pixels=4096),
            "a picture of 256 to 4096 pixels is asked for and the bundle takes 256 to 2048; stay within them, or "
            "export with --max-pixels 4096",
        ),
        (Look(min_pixels=64), "of 64 to 2048 pixels is asked .* or export with --min-pixels 64$"),
        (Look(max_pixels=128), "of 256 to 128 pixels is asked .* or export with --min-pixels 128$"),
        (Look(min_pixels=4096), "of 4096 to 2048 pixels is asked .* or export with --max-pixels 4096$"),
        (Look(min_pixels=1, max_pixels=9999), "--min-pixels 1 and --max-pixels 9999$"),
    ],
    ids=str,
)
def test_bounds_beyond_the_bundles(look: Look, sentence: str, checkpoint: tuple[Family, Path]) -> None:
    with pytest.raises(PromptError, match=sentence):
        looking(model_of(*checkpoint), look)


def test_bounds_that_hold_no_token(checkpoint: tuple[Family, Path]) -> None:
    model = model_of(*checkpoint)
    wide = within(checkpoint[0].read_config(checkpoint[1]), Limits(256, 1, 1))
    wide = replace(wide, pictures=replace(wide.pictures, min_pixels=1))
    with pytest.raises(PromptError, match=r"at most 50 pixels holds no square of 8×8, which is one token; .* least 64"):
        looking(wide, Look(max_pixels=50))
    assert looking(model, AS_IT_IS) is model and looking(model, Look(Detail.HIGH)) is model


def test_models_of_squares_have_no_bounds() -> None:
    model = small_model("llava15", ChatFormat.LLAVA, 16)
    assert looking(model, Look(Detail.LOW)) is model
    for look in (Look(min_pixels=100), Look(max_pixels=100)):
        with pytest.raises(PromptError, match="for models that take pictures of any size, and this one brings every"):
            looking(model, look)
        with pytest.raises(PromptError, match="leave them out"):
            family("llava15").preprocess(PillowImage.new("RGB", (9, 9)), model, look)


@given(
    st.tuples(
        *[st.builds(Look, st.sampled_from(Detail), st.none() | st.integers(1, 9), st.none() | st.integers(9, 99))] * 2
    )
)
def test_a_key_is_of_one_look(looks: tuple[Look, Look]) -> None:
    one, other = (Image(b"x", "", look.detail, look.min_pixels, look.max_pixels) for look in looks)
    assert (one.key == other.key) == (looks[0] == looks[1])
    assert (one.key == one.digest) == (looks[0] == AS_IT_IS)
    assert Image(b"y").key != Image(b"x").key
