"""PaliGemma's prompts against the original's ids, regions, and what is no task."""

import gzip
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.made_models import small_model
from tests.families.made_tokenizers import gemma_like
from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.errors import BundleError, PromptError
from vlm_trt.families.messages import Image, ImageSpan, Message, Part, Region, Text
from vlm_trt.families.paligemma.codes import CONTENT_TOKENS
from vlm_trt.families.paligemma.prompt import build_prompt
from vlm_trt.families.tokenizer_json import JsonTokenizer

QUAD = ((1, 2), (3, 4), (5, 6), (7, 8))


def model_of(tokens: int = 16) -> ModelConfig:
    return small_model("paligemma", ChatFormat.TASK, tokens)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    """With all codes; `<image>` has the last id, as in the published one."""
    path = gemma_like(tmp_path_factory.mktemp("s") / "tokenizer.json", 1600, 1599, locations=1024, segments=128)
    return JsonTokenizer(path, [1], CONTENT_TOKENS)


@pytest.mark.shared
def test_ids_are_the_originals(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(gzip.decompress((shared / "vocab" / "paligemma" / "tokenizer.json.gz").read_bytes()))
    official = JsonTokenizer(path, [1], CONTENT_TOKENS)
    assert (official.id_of("<loc0000>"), official.id_of("<seg127>"), official.vocab_size) == (256000, 257151, 257153)
    cases = json.loads((shared / "golden" / "paligemma" / "prompts.json").read_text())["cases"]
    assert len(cases) == 31
    for case in cases:
        tokens = case["image_tokens"] // case["images"]
        # Pictures come first, wherever they stand.
        for parts in ([Image(b"")] * case["images"] + [case["text"]], [case["text"]] + [Image(b"")] * case["images"]):
            prompt = build_prompt([Message("user", parts)], official, model_of(tokens), 8192)
            assert list(prompt.ids) == case["ids"], case["name"]
            spans = tuple(ImageSpan(at * tokens, (at + 1) * tokens, at) for at in range(case["images"]))
            assert (prompt.spans, prompt.prefix, prompt.dropped_turns) == (spans, len(prompt.ids), 0)
    # A region is what it says: one of the recorded prompts, its box given as a part.
    region = Region("", (((195, 98), (684, 586)),))
    ids = build_prompt([Message("user", [Image(b""), "caption ", region])], official, model_of(256), 8192).ids
    assert list(ids) == next(case["ids"] for case in cases if case["name"] == "caption_region")


def test_the_parts_of_a_prompt(small: JsonTokenizer) -> None:
    prompt = build_prompt([Message("user", ["ocr\n", Image(b"1"), "x", Image(b"2")])], small, model_of(), 512)
    text = small.encode("ocr\nx\n")
    assert prompt.ids == (*[small.id_of("<image>")] * 32, small.id_of("<bos>"), *text)
    assert prompt.spans == (ImageSpan(0, 16, 0), ImageSpan(16, 32, 1))
    assert [image.data for image in prompt.images] == [b"1", b"2"]
    assert prompt.prefix == len(prompt.ids)


def test_a_line_break_at_the_end_merges_with_the_prompts_own(small: JsonTokenizer) -> None:
    assert build_prompt([Message("user", "ocr\n")], small, model_of(), 512).ids[-1] == small.id_of("\n\n")


def test_regions_become_codes_with_y_first(small: JsonTokenizer) -> None:
    region = Region("red cat", (((0, 100), (500, 999)), ((1, 2), (1000, 4))))
    prompt = build_prompt([Message("user", ["segment ", region])], small, model_of(), 512)
    text = "segment <loc0102><loc0000><loc1023><loc0512> red cat ; <loc0002><loc0001><loc0004><loc1023> red cat\n"
    assert prompt.ids == (small.id_of("<bos>"), *small.encode(text))
    assert [small.id_of(f"<loc{at:04}>") in prompt.ids for at in (102, 0, 1023, 512, 2, 1, 4)] == [True] * 7


def test_a_region_with_a_name_only_is_its_name(small: JsonTokenizer) -> None:
    assert build_prompt([Message("user", ["detect ", Region("cat")])], small, model_of(), 512).ids == (
        small.id_of("<bos>"),
        *small.encode("detect cat\n"),
    )


@pytest.mark.parametrize(
    ("region", "sentence"),
    [
        (Region("cat", (), (QUAD,)), "PaliGemma has no notation for quads; give the region's boxes"),
        (Region("cat", (((0, 0), (1001, 5)),)), "coordinates go from 0 to 999 of the picture, and one of .*1001"),
        (Region("cat", (((0, -1), (5, 5)),)), "coordinates go from 0 to 999"),
    ],
)
def test_regions_that_cannot_be_written(small: JsonTokenizer, region: Region, sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        build_prompt([Message("user", [region])], small, model_of(), 512)


def test_a_vocabulary_without_codes_is_named(tmp_path: Path) -> None:
    tokenizer = JsonTokenizer(gemma_like(tmp_path / "tokenizer.json"), [1], CONTENT_TOKENS)
    with pytest.raises(BundleError, match=r"tokenizer\.json has no added token <loc0002>; use the tokenizer\.json"):
        build_prompt([Message("user", [Region("", (((1, 2), (3, 4)),))])], tokenizer, model_of(), 512)
    assert build_prompt([Message("user", [Image(b""), "ocr"])], tokenizer, model_of(), 512).ids[:2] == (310, 310)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [Message("assistant", "x")],
        [Message("system", "x")],
        [Message("system", "s"), Message("user", "x")],
        [Message("user", "x"), Message("assistant", "y"), Message("user", "z")],
    ],
)
def test_a_conversation_is_refused(small: JsonTokenizer, messages: list[Message]) -> None:
    with pytest.raises(PromptError, match="answers one task and holds no conversation; give one user message"):
        build_prompt(messages, small, model_of(), 512)


def test_exact_ids_belong_to_answers(small: JsonTokenizer) -> None:
    with pytest.raises(PromptError, match="role 'user'; give them to assistants' only"):
        build_prompt([Message("user", "x", ids=(1, 2))], small, model_of(), 512)


def test_a_prompt_that_does_not_fit_is_refused(small: JsonTokenizer) -> None:
    question = [Message("user", [Image(b""), "ocr"])]
    fitting = len(build_prompt(question, small, model_of(), 512).ids)
    assert build_prompt(question, small, model_of(), fitting).prefix == fitting
    with pytest.raises(PromptError, match=f"has {fitting} tokens, 1 picture among them, and the bundle holds"):
        build_prompt(question, small, model_of(), fitting - 1)


@pytest.mark.parametrize("parts", [[Text("ab " * (1 << 24))], [Image(b"")] * 100_000], ids=["text", "pictures"])
def test_the_hopelessly_large_is_refused_at_once(small: JsonTokenizer, parts: list[Part]) -> None:
    started = time.perf_counter()
    with pytest.raises(PromptError, match="at least .* tokens.* holds 512 positions; shorten it, send fewer pictures"):
        build_prompt([Message("user", parts)], small, model_of(), 512)
    assert time.perf_counter() - started < 2


@given(
    st.lists(
        st.one_of(st.sampled_from(["<bos>", "<eos>", "<pad>", "<image>", "<unk>", "<loc0001>", "\n"]), st.text()),
        max_size=8,
    ).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_no_text_becomes_a_control_token(small: JsonTokenizer, text: str) -> None:
    prompt = build_prompt([Message("user", [Image(b""), text])], small, model_of(), 1 << 16)
    control = [small.id_of(name) for name in ("<pad>", "<eos>", "<bos>", "<unk>", "<image>")]
    assert [token for token in prompt.ids if token in control] == [*[small.id_of("<image>")] * 16, control[2]]
    assert prompt.ids.count(small.id_of("<loc0001>")) == text.count("<loc0001>")
