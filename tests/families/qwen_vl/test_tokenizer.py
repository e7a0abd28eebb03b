"""The tokenizer against the original's ids, with both vocabularies, and against hostile text."""

import base64
import json
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import GOLDEN
from vlm_trt.bundle.errors import BundleError, PromptError
from vlm_trt.families.qwen_vl.tokenizer import Tokenizer

SMALL = Tokenizer(GOLDEN / "vocab.tiktoken")
VOCABULARIES = ["small", pytest.param("official", marks=pytest.mark.shared)]
HOSTILE = "".join(SMALL.special) + "<img>/etc/hostname</img><img>http://localhost/</img>"


def tokenizer_and_records(
    vocabulary: str, request: pytest.FixtureRequest, chat_format: str = "chatml"
) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a vocabulary and what the original made with it."""
    path, name = GOLDEN / "vocab.tiktoken", "tokenizer.json"
    if vocabulary == "official":
        shared: Path = request.getfixturevalue("shared")
        path, name = shared / "vocab" / "qwen.tiktoken", "tokenizer-official-vocab.json"
    return Tokenizer(path, chat_format=chat_format), json.loads((GOLDEN / name).read_text())


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("special", ["all", "image_tags", "none"])
def test_ids_are_the_originals(vocabulary: str, special: Any, request: pytest.FixtureRequest) -> None:
    tokenizer, records = tokenizer_and_records(vocabulary, request)
    for record in records["strings"]:
        expected = record[special]
        if isinstance(expected, list):
            assert tokenizer.encode(record["text"], special) == expected, record["text"]
        else:  # the original raised
            with pytest.raises(PromptError):
                tokenizer.encode(record["text"], special)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_decoding_is_the_originals(vocabulary: str, request: pytest.FixtureRequest) -> None:
    tokenizer, records = tokenizer_and_records(vocabulary, request)
    decodable = [record for record in records["strings"] if isinstance(record["all"], list) and "decoded" in record]
    assert len(decodable) > 30
    for record in decodable:
        assert tokenizer.decode(record["all"]) == record["decoded"]
        assert tokenizer.decode(record["all"], skip_special=True) == record["decoded_skip_special"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_special_ids_follow_the_ranks(vocabulary: str, request: pytest.FixtureRequest) -> None:
    tokenizer, records = tokenizer_and_records(vocabulary, request)
    assert tokenizer.vocab_size == records["vocab_size"]
    assert {name: tokenizer.special[name] for name in records["special_tokens"]} == records["special_tokens"]


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_what_ends_an_answer_is_the_originals(vocabulary: str, request: pytest.FixtureRequest) -> None:
    """The original's raw format also stops at the text "Human:", which is no token: a request's stop string."""
    chat, records = tokenizer_and_records(vocabulary, request)
    stops = records["stop_words_ids"]
    assert chat.stop_ids == {*(ids[0] for ids in stops["chatml"]), chat.end_of_text}
    base = tokenizer_and_records(vocabulary, request, "raw")[0]
    assert base.stop_ids == {ids[0] for ids in stops["raw"] if len(ids) == 1} == {base.end_of_text}
    assert [ids for ids in stops["raw"] if len(ids) > 1] == [base.encode("Human:")]


@given(st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=200))
@settings(max_examples=200, deadline=None)
def test_user_text_never_becomes_a_special_token(text: str) -> None:
    """Any text at all: lone surrogates, control characters, unassigned code points."""
    assert all(token < SMALL.first_special for token in SMALL.encode(text + HOSTILE + text))


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_plain_text_survives_a_round_trip(text: str) -> None:
    assert SMALL.decode(SMALL.encode(text)) == unicodedata.normalize("NFC", text)


def test_a_lone_surrogate_becomes_the_replacement_character() -> None:
    assert SMALL.decode(SMALL.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("unit", ["a", "中", "ab ", "<|im_start|>", "!", "1", "😀"])
def test_a_mebibyte_of_text_is_encoded(unit: str) -> None:
    text = unit * ((1 << 20) // len(unit.encode()))
    assert len(SMALL.encode(text)) > 1000


@pytest.mark.parametrize(
    "text",
    [
        (" " * 99_999 + "a") * 10,
        (("\r\n \n" * 25_000)[:99_999] + "a") * 10,
        ("a" + "\u0300\u0316" * 500) * 524,
        ("a" + "\u0300" * 500 + "\u0316" * 500) * 524,
        ("a" + "\u0f73" * 1000) * 340,
    ],
    ids=["blanks", "lines", "marks", "two marks", "marks that decompose"],
)
def test_text_just_below_the_bounds_takes_no_minute(text: str) -> None:
    """Seen before the bounds were looked for in linear time: 62 s for the blanks, minutes for the marks."""
    started = time.perf_counter()
    assert SMALL.decode(SMALL.encode(text)) == unicodedata.normalize("NFC", text)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize("marks", ["\u0300", "\u0300\u0316", "\u0f73"])
@pytest.mark.parametrize("before", ["", "a", "a" * 1000, "e\u0301 " * 700])
def test_combining_marks_without_end_are_refused(before: str, marks: str) -> None:
    bound = marks * (1000 // len(marks))
    assert SMALL.encode(before.replace("\u0301", "") + bound)
    with pytest.raises(PromptError, match="more than 1,000 combining marks in a row; remove them"):
        SMALL.encode(before + bound + marks + "a")


@pytest.mark.parametrize("blank", [" ", "\t", "\u3000", "\n"])
def test_a_mebibyte_of_blanks_is_refused_before_it_overflows_the_regex_engine(blank: str) -> None:
    with pytest.raises(PromptError, match="more than 100,000 blanks in a row; remove them"):
        SMALL.encode(blank * (1 << 20))
    assert SMALL.encode("a" + blank * 100_000 + "a")


def test_an_image_path_longer_than_its_span_is_refused() -> None:
    with pytest.raises(PromptError, match="257 bytes is longer than the 256"):
        SMALL.encode(f"<img>{'p' * 257}</img>", "all")


def test_an_unclosed_image_tag_is_refused() -> None:
    with pytest.raises(PromptError, match="not closed"):
        SMALL.encode("<img>a.png", "all")


@pytest.mark.parametrize("content", [b"", b"no ranks here", b"AA== 0\nAQ== 2\n", b"!!!! 0\n", b"\xff\xfe"])
def test_a_broken_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"qwen\.tiktoken.*published checkpoint"):
        Tokenizer(path)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing.tiktoken cannot be read"):
        Tokenizer(tmp_path / "missing.tiktoken")


def test_a_vocabulary_without_a_byte_is_refused(tmp_path: Path) -> None:
    """Whatever text holds that byte would bring the encoder down."""
    path = tmp_path / "qwen.tiktoken"
    tokens = [bytes([byte]) for byte in range(255)] + [b"ab", b"cd"]
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    with pytest.raises(BundleError, match=r"qwen\.tiktoken: 1 of the 256 single bytes have no rank; copy it again"):
        Tokenizer(path)
