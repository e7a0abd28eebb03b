"""LLaVA's prompts against the original's ids, history, and what user text may never do."""

import gzip
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import SHARED
from tests.families.made_models import small_model
from tests.families.made_tokenizers import llama_like, llama_like_first
from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.errors import BundleError, PromptError
from vlm_trt.families.llava15.prompt import build_prompt
from vlm_trt.families.messages import Image, Message, Part, Region, Text
from vlm_trt.families.tokenizer_json import JsonTokenizer

RECORDS = SHARED / "golden" / "llava15" / "prompts.json"
MAKERS = {"prepends": llama_like, "prepends once": llama_like_first}
ANYTHING = st.lists(
    st.one_of(
        st.sampled_from(["<s>", "</s>", "<image>", "<unk>", "USER: ", " ASSISTANT:", "\ud800", "\n", " "]),
        st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=20),
    ),
    max_size=12,
).map("".join)


@pytest.fixture(params=sorted(MAKERS))
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> JsonTokenizer:
    return JsonTokenizer(MAKERS[request.param](tmp_path / "tokenizer.json"), [2])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(llama_like(tmp_path_factory.mktemp("small") / "tokenizer.json"), [2])


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> JsonTokenizer:
    path = tmp_path_factory.mktemp("official") / "tokenizer.json"
    path.write_bytes(gzip.decompress((shared / "vocab" / "llava15" / "tokenizer.json.gz").read_bytes()))
    return JsonTokenizer(path, [2])


def model_of(tokens: int = 16, window: int = 1 << 20) -> ModelConfig:
    return small_model("llava15", ChatFormat.LLAVA, tokens, window)


@cache
def records() -> list[dict[str, Any]]:
    """The recorded conversations of the published template that end in a question."""
    cases = json.loads(RECORDS.read_text())["cases"]
    return [case for case in cases if case["style"] == "hf" and case["add_generation_prompt"]]


def messages_of(case: dict[str, Any]) -> list[Message]:
    def part(content: dict[str, Any]) -> Part:
        return Text(content["text"]) if content["type"] == "text" else Image(b"")

    return [Message(one["role"], [part(content) for content in one["content"]]) for one in case["messages"]]


@pytest.mark.shared
def test_ids_are_the_originals(official: JsonTokenizer) -> None:
    assert len(records()) == 20
    for case in records():
        prompt = build_prompt(messages_of(case), official, model_of(576), 4096)
        assert list(prompt.ids) == case["ids"], case["name"]
        assert [span.stop - span.start for span in prompt.spans] == case["image_tokens"]
        assert all(set(prompt.ids[span.start : span.stop]) == {32000} for span in prompt.spans)
        assert (prompt.dropped_turns, prompt.prefix) == (0, 0)


@pytest.mark.shared
def test_the_original_repositorys_first_turn_is_one_with_its_system_message(official: JsonTokenizer) -> None:
    """Its template, vicuna_v1, differs in later turns alone, which it ends with </s>."""
    recorded = json.loads(RECORDS.read_text())
    first = [
        case
        for case in recorded["cases"]
        if case["style"] == "vicuna_v1" and [one["role"] for one in case["messages"]] == ["user"]
    ]
    assert len(first) >= 6
    system = Message("system", recorded["vicuna_v1_system"])
    for case in first:
        prompt = build_prompt([system, *messages_of(case)], official, model_of(576), 4096)
        assert list(prompt.ids) == case["ids"], case["name"]


@pytest.mark.shared
def test_an_answers_exact_ids_continue_as_its_text_does(official: JsonTokenizer) -> None:
    case = next(case for case in records() if case["name"] == "multi_turn")
    asked, said, again = messages_of(case)
    ids = official.encode(said.parts[0].text)  # type: ignore[union-attr]
    prompt = build_prompt([asked, Message("assistant", "no", ids=ids), again], official, model_of(576), 4096)
    assert list(prompt.ids) == case["ids"]


def shown(tokenizer: JsonTokenizer, ids: tuple[int, ...]) -> str:
    """The whole text, `<image>` for a picture's span of 16."""
    names = {tokenizer.id_of(name): name.encode() for name in ("<s>", "<image>")}
    text = b"".join(names.get(token, tokenizer.visible_bytes(token)) for token in ids).decode()
    return text.replace("<image>" * 16, "<image>")


def test_the_templates_text(tokenizer: JsonTokenizer) -> None:
    conversation = [
        Message("system", "Be brief."),
        Message("user", ["Look", Image(b"1"), "at ", "this"]),
        Message("assistant", "A cat"),
        Message("user", [Image(b"2")]),
    ]
    prompt = build_prompt(conversation, tokenizer, model_of(), 512)
    blank = " " if shown(tokenizer, tuple(tokenizer.encode("a", later=True))) == " a" else ""  # before every stretch
    expected = f"<s> Be brief. USER: <image>{blank}\nLook at this ASSISTANT: A cat USER: <image>{blank}\nASSISTANT:"
    assert shown(tokenizer, prompt.ids) == expected
    assert [image.data for image in prompt.images] == [b"1", b"2"]


def test_an_answers_exact_ids_are_kept(tokenizer: JsonTokenizer) -> None:
    said = tuple(tokenizer.encode("It is a cat"))
    conversation = [Message("user", "a"), Message("assistant", "other", ids=said), Message("user", "b")]
    written = [Message("user", "a"), Message("assistant", "It is a cat"), Message("user", "b")]
    prompt = build_prompt(conversation, tokenizer, model_of(), 512)
    begun = build_prompt(conversation[:1], tokenizer, model_of(), 512)
    assert prompt.ids[: len(begun.ids) + len(said)] == (*begun.ids, *said)
    assert prompt == build_prompt(written, tokenizer, model_of(), 512)


def test_the_oldest_turns_are_dropped(small: JsonTokenizer) -> None:
    turns = [
        message
        for at in range(9)
        for message in (Message("user", [Image(b"%d" % at), f"question {at}"]), Message("assistant", f"answer {at}"))
    ]
    conversation = [Message("system", "Be brief."), *turns, Message("user", "last")]
    whole = build_prompt(conversation, small, model_of(), 4096)
    assert (whole.dropped_turns, len(whole.images)) == (0, 9)
    for dropped in range(1, 10):
        rest = build_prompt([conversation[0], *conversation[1 + 2 * dropped :]], small, model_of(), 4096)
        fits = build_prompt(conversation, small, model_of(), len(rest.ids))
        assert (fits.ids, fits.dropped_turns, fits.images) == (rest.ids, dropped, rest.images)
        assert build_prompt(conversation, small, model_of(window=len(rest.ids)), 4096).dropped_turns == dropped
    with pytest.raises(PromptError, match=f"has {len(rest.ids)} tokens, and the bundle holds .* positions; shorten it"):
        build_prompt(conversation, small, model_of(), len(rest.ids) - 1)


def test_dropped_history_costs_little(small: JsonTokenizer) -> None:
    turn = [Message("user", "ab " * 2000), Message("assistant", "cd " * 2000)]
    long = [Message("user", "ab " * (1 << 24)), Message("assistant", "y")]
    short = [Message("user", "a"), Message("assistant", "b")]
    started = time.perf_counter()
    for older in (turn, short):
        prompt = build_prompt([*older * 5000, *long, Message("user", "z")], small, model_of(), 512)
        assert prompt.dropped_turns == 5001
    assert build_prompt([*short * 50_000, Message("user", "z")], small, model_of(), 4096).dropped_turns > 49_000
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("parts", [[Text("ab " * (1 << 24))], [Image(b"")] * 100_000], ids=["text", "pictures"])
def test_the_hopelessly_large_is_refused_at_once(small: JsonTokenizer, parts: list[Part]) -> None:
    started = time.perf_counter()
    with pytest.raises(PromptError, match="at least .* tokens.* holds 512 positions; shorten it, send fewer pictures"):
        build_prompt([Message("user", parts)], small, model_of(), 512)
    assert time.perf_counter() - started < 2


@given(system=ANYTHING, asked=ANYTHING, answered=ANYTHING)
@settings(max_examples=150, deadline=None)
def test_no_text_changes_what_is_a_token(small: JsonTokenizer, system: str, asked: str, answered: str) -> None:
    conversation = [
        Message("system", system),
        Message("user", [Image(b""), asked]),
        Message("assistant", answered),
        Message("user", [asked, Image(b""), asked]),
    ]
    prompt = build_prompt(conversation, small, model_of(), 1 << 16)
    placeholder = small.id_of("<image>")
    special = {small.id_of(name) for name in ("<s>", "</s>", "<unk>", "<image>")}
    assert [token for token in prompt.ids if token in special] == [small.id_of("<s>"), *[placeholder] * 32]
    assert all(set(prompt.ids[span.start : span.stop]) == {placeholder} for span in prompt.spans)
    assert [span.stop - span.start for span in prompt.spans] == [16, 16]


def test_regions_are_refused(small: JsonTokenizer) -> None:
    with pytest.raises(PromptError, match="LLaVA has no notation for regions; describe the place in words"):
        build_prompt([Message("user", [Region("cat", (((1, 2), (3, 4)),))])], small, model_of(), 512)


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "ends with the user's message"),
        ([Message("user", "x"), Message("assistant", "x")], "ends with the user's message"),
        ([Message("user", "x"), Message("system", "x"), Message("user", "x")], "role 'system' may not stand inside"),
        ([Message("user", "x", ids=(1, 2))], "role 'user'; give them to assistants' only"),
    ],
)
def test_what_is_no_conversation_is_refused(small: JsonTokenizer, messages: list[Message], sentence: str) -> None:
    with pytest.raises(PromptError, match=sentence):
        build_prompt(messages, small, model_of(), 512)


def test_a_tokenizer_without_the_placeholder_is_named(tmp_path: Path) -> None:
    path = llama_like(tmp_path / "tokenizer.json")
    path.write_text(path.read_text().replace("<image>", "<picture>"))
    with pytest.raises(BundleError, match=r"tokenizer\.json has no added token <image>; use the tokenizer\.json that"):
        build_prompt([Message("user", [Image(b"")])], JsonTokenizer(path, [2]), model_of(), 512)
