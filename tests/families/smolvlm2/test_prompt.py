"""SmolVLM2's prompts against the original's ids, tiles of pictures of any size, and what user text may never do."""

import gzip
import json
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PillowImage

from tests.conftest import SHARED
from tests.families.made_tokenizers import smollm_like
from tests.families.made_videos import recorded_clip
from tests.families.published.published_configs import SMOLVLM2_2B, SMOLVLM2_500M, golden, written
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import ImageError, PromptError
from vlm_trt.families.messages import Detail, Image, Message, Part, Region, Text
from vlm_trt.families.smolvlm2.config import read_config
from vlm_trt.families.smolvlm2.prompt import build_prompt, continue_text
from vlm_trt.families.tokenizer_json import JsonTokenizer

RECORDS = SHARED / "golden" / "smolvlm2" / "prompts.json.gz"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<global-img>", "<row_1_col_1>", "<row_6_col_6>",
           "<fake_token_around_image>", "<end_of_utterance>")  # fmt: skip
ANYTHING = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, "User: ", "Assistant:", "\ud800", "\n", " ", "7"]),
        st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=20),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(smollm_like(tmp_path_factory.mktemp("small") / "tokenizer.json"), [2])


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """Tiles of 32 pixels and 4 tokens, at most 4 across, and a history without a bound of its own."""
    model = read_config(written(tmp_path_factory.mktemp("model"), "smolvlm2", golden("smolvlm2"), 32))
    return replace(model, generation=replace(model.generation, max_window_tokens=1 << 20))


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> JsonTokenizer:
    path = tmp_path_factory.mktemp("official") / "tokenizer.json"
    path.write_bytes(gzip.decompress((shared / "vocab" / "smolvlm2" / "tokenizer.json.gz").read_bytes()))
    return JsonTokenizer(path, [49279])


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    root = tmp_path_factory.mktemp("published")
    return {
        "500M": read_config(written(root / "500M", "smolvlm2", SMOLVLM2_500M, 512)),
        "2.2B": read_config(written(root / "2.2B", "smolvlm2", SMOLVLM2_2B, 384)),
    }


@cache
def picture(width: int, height: int) -> bytes:
    """A picture of that size, of which nothing but the size is looked at."""
    data = BytesIO()
    PillowImage.new("1", (width, height)).save(data, "PNG")
    return data.getvalue()


@cache
def records() -> list[dict[str, Any]]:
    """The recorded conversations that end in a question."""
    cases = json.loads(gzip.decompress(RECORDS.read_bytes()))["cases"]
    return [case for case in cases if case["add_generation_prompt"]]


def messages_of(case: dict[str, Any]) -> list[Message]:
    detail = Detail.AUTO if case["do_image_splitting"] else Detail.LOW

    def part(content: dict[str, Any]) -> Part:
        if content["type"] == "text":
            return Text(content["text"])
        if content["type"] == "video":
            return recorded_clip(content)
        height, width = content["size"]
        return Image(picture(width, height), detail=detail)

    return [Message(one["role"], [part(content) for content in one["content"]]) for one in case["messages"]]


@pytest.mark.shared
def test_ids_are_the_originals(official: JsonTokenizer, models: dict[str, ModelConfig]) -> None:
    assert len(records()) >= 34 and sum(case["name"].startswith("video") for case in records()) == 4
    assert {case["variant"] for case in records()} == set(models)
    assert {case["do_image_splitting"] for case in records()} == {True, False}
    for case in records():
        model = models[case["variant"]]
        prompt = build_prompt(messages_of(case), official, model, 8192)
        assert list(prompt.ids) == case["ids"], (case["name"], case["variant"])
        assert prompt.picture_tokens == case["image_tokens"]
        assert all(set(prompt.ids[span.start : span.stop]) == {49190} for span in prompt.spans)
        assert {span.stop - span.start for span in prompt.spans} <= {model.tile_tokens}
        assert (prompt.dropped_turns, prompt.prefix) == (0, 0)


def shown(tokenizer: JsonTokenizer, ids: tuple[int, ...]) -> str:
    """The whole text, `<image>` for a tile's span of 4."""
    names = {tokenizer.id_of(name): name.encode() for name in SPECIAL}
    places = {f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)}
    names |= {tokenizer.id_of(name): name.encode() for name in places}
    text = b"".join(names.get(token, tokenizer.visible_bytes(token)) for token in ids).decode()
    return text.replace("<image>" * 4, "<image>")


def test_the_templates_text(small: JsonTokenizer, small_model: ModelConfig) -> None:
    conversation = [
        Message("system", "Be brief."),
        Message("user", [Image(picture(70, 45)), "Look", " at ", Image(picture(9, 9), detail=Detail.LOW), "this"]),
        Message("assistant", "A cat"),
        Message("user", "Sure?"),
    ]
    prompt = build_prompt(conversation, small, small_model, 512)
    fake = "<fake_token_around_image>"
    tiles = [[f"{fake}<row_{row}_col_{column}><image>" for column in (1, 2, 3, 4)] for row in (1, 2, 3)]
    rows = "\n".join("".join(row) for row in tiles)
    assert shown(small, prompt.ids) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        f"User:{rows}\n\n{fake}<global-img><image>{fake}Look at {fake}<global-img><image>{fake}this<end_of_utterance>\n"
        "Assistant: A cat<end_of_utterance>\nUser: Sure?<end_of_utterance>\nAssistant:"
    )
    assert [span.image for span in prompt.spans] == [0] * 13 + [1]
    rows_of_pictures = prompt.image_rows()
    assert list(rows_of_pictures[rows_of_pictures >= 0]) == list(range(14 * 4))


def test_an_answers_exact_ids_are_kept(small: JsonTokenizer, small_model: ModelConfig) -> None:
    said = tuple(small.encode(" It is a cat"))
    conversation = [Message("user", "a"), Message("assistant", "other", ids=said), Message("user", "b")]
    written_out = [Message("user", "a"), Message("assistant", "It is a cat"), Message("user", "b")]
    prompt = build_prompt(conversation, small, small_model, 512)
    begun = build_prompt(conversation[:1], small, small_model, 512)
    assert prompt.ids[: len(begun.ids) + len(said)] == (*begun.ids, *said)
    assert prompt == build_prompt(written_out, small, small_model, 512)


def test_the_oldest_turns_are_dropped_with_their_pictures(small: JsonTokenizer, small_model: ModelConfig) -> None:
    turns = [
        message
        for at in range(5)
        for message in (Message("user", [Image(picture(9 + at, 8)), f"q {at}"]), Message("assistant", f"answer {at}"))
    ]
    conversation = [*turns, Message("user", "last")]
    whole = build_prompt(conversation, small, small_model, 4096)
    assert (whole.dropped_turns, len(whole.images)) == (0, 5)
    for dropped in range(1, 6):
        rest = build_prompt(conversation[2 * dropped :], small, small_model, 4096)
        fits = build_prompt(conversation, small, small_model, len(rest.ids))
        assert (fits.ids, fits.dropped_turns, fits.images) == (rest.ids, dropped, rest.images)


def test_what_does_not_fit_or_is_no_picture(small: JsonTokenizer, small_model: ModelConfig) -> None:
    asked = [Message("user", [Image(picture(9, 9))])]
    with pytest.raises(PromptError, match="1 picture among them, and the bundle holds 64 positions; shorten it"):
        build_prompt(asked, small, small_model, 64)
    assert build_prompt([Message("user", [Image(picture(9, 9), detail=Detail.LOW)])], small, small_model, 64).ids
    with pytest.raises(ImageError, match="the picture is no picture this version reads"):
        build_prompt([Message("user", [Image(b"nothing")])], small, small_model, 512)
    with pytest.raises(PromptError, match="SmolVLM2 has no notation for regions; describe the place in words"):
        build_prompt([Message("user", [Region("cat", (((1, 2), (3, 4)),))])], small, small_model, 512)


def test_a_text_alone_has_nothing_in_front(small: JsonTokenizer, small_model: ModelConfig) -> None:
    assert continue_text("a <image> b", small, small_model, 64).ids == tuple(small.encode("a <image> b"))


@given(system=ANYTHING, asked=ANYTHING, answered=ANYTHING)
@settings(max_examples=100, deadline=None)
def test_no_text_changes_what_is_a_token(
    small: JsonTokenizer, small_model: ModelConfig, system: str, asked: str, answered: str
) -> None:
    one = Image(picture(9, 9), detail=Detail.LOW)
    conversation = [
        Message("system", system),
        Message("user", [one, asked]),
        Message("assistant", answered),
        Message("user", [asked, one, asked]),
    ]
    prompt = build_prompt(conversation, small, small_model, 1 << 16)
    special = {small.id_of(name) for name in SPECIAL}
    around, whole, image, end = (
        small.id_of(name) for name in ("<fake_token_around_image>", "<global-img>", "<image>", "<end_of_utterance>")
    )
    shown_picture = [around, whole, *[image] * 4, around]
    expected = [small.id_of("<|im_start|>"), end, *shown_picture, end, end, *shown_picture, end]
    assert [token for token in prompt.ids if token in special] == expected
