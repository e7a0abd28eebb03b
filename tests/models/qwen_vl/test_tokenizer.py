"""The tokenizer against the original's ids, with both vocabularies, and against hostile text."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import BundleError, PromptError
from models.qwen_vl.tokenizer import Tokenizer
from tests.conftest import GOLDEN

SMALL = Tokenizer(GOLDEN / "vocab.tiktoken")
HOSTILE = "".join(SMALL.special) + "<img>/etc/hostname</img><img>http://localhost/</img>"


def tokenizer_and_records(vocabulary: str, request: pytest.FixtureRequest) -> tuple[Tokenizer, dict[str, Any]]:
    if vocabulary == "small":
        return SMALL, json.loads((GOLDEN / "tokenizer.json").read_text())
    shared: Path = request.getfixturevalue("shared")
    records = json.loads((GOLDEN / "tokenizer-official-vocab.json").read_text())
    return Tokenizer(shared / "vocab" / "qwen.tiktoken"), records


@pytest.mark.parametrize("vocabulary", ["small", "official"])
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


@pytest.mark.parametrize("vocabulary", ["small", "official"])
def test_decoding_is_the_originals(vocabulary: str, request: pytest.FixtureRequest) -> None:
    tokenizer, records = tokenizer_and_records(vocabulary, request)
    decodable = [record for record in records["strings"] if isinstance(record["all"], list) and "decoded" in record]
    assert len(decodable) > 30
    for record in decodable:
        assert tokenizer.decode(record["all"]) == record["decoded"]
        assert tokenizer.decode(record["all"], skip_special=True) == record["decoded_skip_special"]


@pytest.mark.parametrize("vocabulary", ["small", "official"])
def test_special_ids_follow_the_ranks(vocabulary: str, request: pytest.FixtureRequest) -> None:
    tokenizer, records = tokenizer_and_records(vocabulary, request)
    assert tokenizer.vocab_size == records["vocab_size"]
    assert {name: tokenizer.special[name] for name in records["special_tokens"]} == records["special_tokens"]
    stops = {ids[0] for ids in records.get("stop_words_ids", {"chatml": []})["chatml"]}
    assert stops <= tokenizer.stop_ids


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


@pytest.mark.parametrize("content", [b"", b"no ranks here", b"AA== 0\nAQ== 2\n", b"!!!! 0\n"])
def test_a_broken_vocabulary_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "qwen.tiktoken"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"qwen\.tiktoken.*published checkpoint"):
        Tokenizer(path)


def test_a_missing_vocabulary_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing.tiktoken cannot be read"):
        Tokenizer(tmp_path / "missing.tiktoken")
