"""Qwen2-VL's and Qwen2.5-VL's prompts against the originals' ids, and what user text may never do."""

import gzip
import json
from collections.abc import Callable
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
from tests.families.made_tokenizers import qwen2_like
from tests.families.made_videos import recorded_clip
from tests.families.published.published_configs import QWEN2_5_VL_7B, QWEN2_VL_7B, golden, written
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import ImageError, PromptError
from vlm_trt.families.contract import Family
from vlm_trt.families.messages import Image, ImageSpan, Message, Part, Region, Text
from vlm_trt.families.qwen2_5_vl.family import FAMILY as QWEN2_5_VL
from vlm_trt.families.qwen2_vl.family import FAMILY as QWEN2_VL
from vlm_trt.families.qwen2_vl.frames import frame_rule
from vlm_trt.families.qwen2_vl.prompt import PLACE_TAGS, build_prompt, continue_text
from vlm_trt.families.tokenizer_json import JsonTokenizer

FAMILIES: dict[str, tuple[Family, dict[str, Any]]] = {
    "qwen2_vl": (QWEN2_VL, QWEN2_VL_7B),
    "qwen2_5_vl": (QWEN2_5_VL, QWEN2_5_VL_7B),
}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>", "<|vision_pad|>", *PLACE_TAGS)  # fmt: skip
TOOLS = ("<tool_call>", "</tool_call>")
ANYTHING = st.lists(
    st.one_of(
        st.sampled_from([*SPECIAL, *TOOLS, "assistant\n", "\ud800", "\n", " ", "7"]),
        st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=20),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Family:
    found, _ = FAMILIES[request.param]
    return found


Loaded = tuple[JsonTokenizer, ModelConfig]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Loaded]:
    """A function: a family → its golden model, with a tokenizer made here and a history without a bound of its own."""
    root = tmp_path_factory.mktemp("small")

    @cache
    def loaded(name: str) -> Loaded:
        chosen, _ = FAMILIES[name]
        model = chosen.read_config(written(root / name, name, golden(name), 4))
        model = replace(model, generation=replace(model.generation, max_window_tokens=1 << 20))
        tokenizer = chosen.load_tokenizer(qwen2_like(root / f"{name}.json", tools=name == "qwen2_5_vl"), model)
        assert isinstance(tokenizer, JsonTokenizer)
        return tokenizer, model

    return lambda of: loaded(of.name)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Callable[[Family], Loaded]:
    """A function: a family → its 7B model, with the published tokenizer."""
    root = tmp_path_factory.mktemp("official")
    content = json.loads(gzip.decompress((shared / "vocab" / "qwen2_vl" / "tokenizer.json.gz").read_bytes()))

    def loaded(of: Family) -> Loaded:
        if of is QWEN2_5_VL:
            content["added_tokens"] = json.loads((shared / "vocab" / "qwen2_5_vl" / "added_tokens.json").read_text())
        path = root / f"{of.name}.json"
        path.write_text(json.dumps(content))
        model = of.read_config(written(root / of.name, of.name, FAMILIES[of.name][1], 14))
        tokenizer = of.load_tokenizer(path, model)
        assert isinstance(tokenizer, JsonTokenizer)
        return tokenizer, model

    return loaded


@cache
def picture(width: int, height: int) -> bytes:
    """A picture of that size, of which nothing but the size is looked at."""
    data = BytesIO()
    PillowImage.new("1", (width, height)).save(data, "PNG")
    return data.getvalue()


def records(name: str) -> list[dict[str, Any]]:
    """The recorded conversations that end in a question, without numbers before the pictures."""
    cases = json.loads((SHARED / "golden" / name / "prompts.json").read_text())["cases"]
    return [case for case in cases if case["add_generation_prompt"] and not case["add_vision_id"]]


def messages_of(case: dict[str, Any], model: ModelConfig) -> list[Message]:
    def part(content: dict[str, Any]) -> Part:
        if content["type"] == "text":
            return Text(content["text"])
        if content["type"] == "video":
            rule = frame_rule(model, 32768)
            return recorded_clip(content, rule.sizes(content["frames"], content["size"][::-1])[-1])
        height, width = content["size"]
        return Image(picture(width, height))

    def parts(content: str | list[dict[str, Any]]) -> str | list[Part]:
        return content if isinstance(content, str) else [part(one) for one in content]

    return [Message(one["role"], parts(one["content"])) for one in case["messages"]]


@pytest.mark.shared
def test_ids_are_the_originals(family: Family, official: Callable[[Family], Loaded]) -> None:
    tokenizer, model = official(family)
    cases = records(family.name)
    assert len(cases) == 25 and sum(bool(case["video_grid_thw"]) for case in cases) == 2
    for case in cases:
        prompt = family.build_prompt(messages_of(case, model), tokenizer, model, 8192)
        assert list(prompt.ids) == case["ids"], case["name"]
        # Videos stand before pictures where there are both.
        assert [span.stop - span.start for span in prompt.spans] == case["video_tokens"] + case["image_tokens"]
        expected = [151656] * len(case["video_tokens"]) + [151655] * len(case["image_tokens"])
        assert [{*prompt.ids[span.start : span.stop]} for span in prompt.spans] == [{one} for one in expected]
        recorded = case["video_grid_thw"] + case["image_grid_thw"]
        grids = [(times, rows // 2, columns // 2) for times, rows, columns in recorded]
        assert [span.grid for span in prompt.spans] == grids
        seconds = case.get("second_per_grid_ts", [0.5] * len(case["video_tokens"]))  # two positions a second
        steps = [2 * one for one in seconds] + [1.0] * len(case["image_tokens"])
        assert [span.time_step for span in prompt.spans] == steps
        assert (prompt.dropped_turns, prompt.prefix) == (0, 0)


def shown(tokenizer: JsonTokenizer, ids: tuple[int, ...]) -> str:
    """The whole text, a picture's tokens one for all."""
    names = {tokenizer.id_of(name): name.encode() for name in SPECIAL}
    once = [token for at, token in enumerate(ids) if token != 5 or not at or ids[at - 1] != 5]
    return b"".join(names.get(token, tokenizer.visible_bytes(token)) for token in once).decode()


def test_the_templates_text(family: Family, small: Callable[[Family], Loaded]) -> None:
    tokenizer, model = small(family)
    conversation = [
        Message("user", [Image(picture(70, 45)), "Look", " at ", Image(picture(9, 9)), "this"]),
        Message("assistant", "A cat"),
        Message("user", "Sure?"),
    ]
    prompt = family.build_prompt(conversation, tokenizer, model, 512)
    seen = "<|vision_start|><|image_pad|><|vision_end|>"
    assert shown(tokenizer, prompt.ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{seen}Look at {seen}this<|im_end|>\n"
        "<|im_start|>assistant\nA cat<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    first, second = prompt.spans
    assert (first.stop - first.start, first.grid) == (28, (1, 4, 7))
    assert second == ImageSpan(second.start, second.start + 1, 1, (1, 1, 1))
    assert prompt.shape.spans == prompt.spans
    told = family.build_prompt([Message("system", "Be brief."), *conversation], tokenizer, model, 512)
    assert shown(tokenizer, told.ids).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")


def test_an_answers_exact_ids_are_kept(family: Family, small: Callable[[Family], Loaded]) -> None:
    tokenizer, model = small(family)
    said = tuple(tokenizer.encode("It is a cat"))
    conversation = [Message("user", "a"), Message("assistant", "other", ids=said), Message("user", "b")]
    written_out = [Message("user", "a"), Message("assistant", "It is a cat"), Message("user", "b")]
    prompt = family.build_prompt(conversation, tokenizer, model, 512)
    begun = family.build_prompt(conversation[:1], tokenizer, model, 512)
    assert prompt.ids[: len(begun.ids) + len(said)] == (*begun.ids, *said)
    assert prompt.ids == family.build_prompt(written_out, tokenizer, model, 512).ids


def test_the_oldest_turns_are_dropped_with_their_pictures(family: Family, small: Callable[[Family], Loaded]) -> None:
    tokenizer, model = small(family)
    turns = [
        message
        for at in range(5)
        for message in (Message("user", [Image(picture(9 + at, 8)), f"q {at}"]), Message("assistant", f"answer {at}"))
    ]
    conversation = [*turns, Message("user", "last")]
    whole = family.build_prompt(conversation, tokenizer, model, 4096)
    assert (whole.dropped_turns, len(whole.images)) == (0, 5)
    for dropped in range(1, 6):
        rest = family.build_prompt(conversation[2 * dropped :], tokenizer, model, 4096)
        fits = family.build_prompt(conversation, tokenizer, model, len(rest.ids))
        assert (fits.ids, fits.dropped_turns, fits.images) == (rest.ids, dropped, rest.images)


def test_what_does_not_fit_or_is_no_picture(family: Family, small: Callable[[Family], Loaded]) -> None:
    tokenizer, model = small(family)
    with pytest.raises(PromptError, match="1 picture among them, and the bundle holds 64 positions; shorten it"):
        family.build_prompt([Message("user", [Image(picture(45, 45))])], tokenizer, model, 64)
    with pytest.raises(PromptError, match="at least 66 tokens, 22 pictures among them"):
        family.build_prompt([Message("user", [Image(picture(9, 9))] * 22)], tokenizer, model, 64)
    with pytest.raises(ImageError, match="the picture is no picture this version reads"):
        family.build_prompt([Message("user", [Image(b"nothing")])], tokenizer, model, 512)
    with pytest.raises(ImageError, match="a picture of 402×2 pixels is more than 200 times as long as wide"):
        family.build_prompt([Message("user", [Image(picture(402, 2))])], tokenizer, model, 512)


def test_a_text_alone_has_nothing_in_front(small: Callable[[Family], Loaded]) -> None:
    tokenizer, model = small(QWEN2_VL)
    assert continue_text("a <|im_end|> b", tokenizer, model, 64).ids == tuple(tokenizer.encode("a <|im_end|> b"))


def test_regions_and_what_was_said_of_places(small: Callable[[Family], Loaded]) -> None:
    tokenizer, model = small(QWEN2_VL)
    region = Region("a cat", (((1, 2), (3, 4)),), (((0, 0), (9, 0), (9, 9), (0, 9)),))
    place = (
        "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
        "<|quad_start|>(0,0),(9,0),(9,9),(0,9)<|quad_end|>"
    )
    as_part = build_prompt([Message("user", ["See ", region, "?"])], tokenizer, model, 512)
    assert shown(tokenizer, as_part.ids).endswith(f"user\nSee {place}?<|im_end|>\n<|im_start|>assistant\n")
    ids = tuple(tokenizer.id_of(tag) for tag in PLACE_TAGS)
    assert [token for token in as_part.ids if token in ids] == list(ids)
    history = [Message("user", place), Message("assistant", f"{place}<|im_end|>"), Message("user", "?")]
    prompt = build_prompt(history, tokenizer, model, 512)
    assert [token for token in prompt.ids if token in ids] == list(ids)  # of the assistant's text alone
    assert prompt.ids.count(tokenizer.id_of("<|im_end|>")) == 4
    tokenizer, model = small(QWEN2_5_VL)
    with pytest.raises(PromptError, match="Qwen2.5-VL has no notation for regions; describe the place in words"):
        QWEN2_5_VL.build_prompt([Message("user", [region])], tokenizer, model, 512)


@given(system=ANYTHING, asked=ANYTHING, answered=ANYTHING)
@settings(max_examples=100, deadline=None)
def test_no_text_changes_what_is_a_token(
    family: Family, small: Callable[[Family], Loaded], system: str, asked: str, answered: str
) -> None:
    tokenizer, model = small(family)
    one = Image(picture(9, 9))
    conversation = [
        Message("system", system),
        Message("user", [one, asked]),
        Message("assistant", answered),
        Message("user", [asked, one, asked]),
    ]
    prompt = family.build_prompt(conversation, tokenizer, model, 1 << 16)
    tags = PLACE_TAGS if family is QWEN2_VL else ()  # which an assistant's text may hold
    special = {tokenizer.id_of(name) for name in (*SPECIAL, *(TOOLS if not tags else ())) if name not in tags}
    begin, end = tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<|im_end|>")
    seen = [tokenizer.id_of(name) for name in ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")]
    expected = [begin, end, begin, *seen, end, begin, end, begin, *seen, end, begin]
    assert [token for token in prompt.ids if token in special] == expected
    held = sum(answered.count(tag) for tag in tags)
    assert sum(token in {tokenizer.id_of(tag) for tag in PLACE_TAGS} for token in prompt.ids) == held
