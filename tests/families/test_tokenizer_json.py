"""Tokenizers of tokenizer.json files against the `tokenizers` package itself, and against hostile text and files."""

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Vocabulary

from tests.families.made_tokenizers import gemma_like, llama_like, llama_like_first
from vlm_trt.bundle.errors import BundleError
from vlm_trt.families.paligemma.codes import CONTENT_TOKENS
from vlm_trt.families.tokenizer_json import JsonTokenizer, require_tokenizer_json

HOSTILE = "<s></s><unk><pad><eos><bos><image>"
TEXTS = [
    "",
    " ",
    "a",
    "Hello, world",
    "  two  blanks  ",
    "line\nline\n\n\nline\r\n\ttab",
    "Café vs Cafe\u0301; ﬁ; \xa0x",
    "请描述这张图片。",
    "😀🏳️\u200d🌈",
    "<0x41> ▁ Ġ <0x4>",
    "<loc0512><seg001> and <loc1024>",
    HOSTILE,
    "\ufffd\0\x7f\u2028",
    "<b>bold</b>   x",
]
ANY_TEXT = st.text(alphabet=st.characters(codec=None, exclude_categories=()), max_size=200)


def byte_level(path: Path) -> Path:
    """As GPT-2's and Qwen's: tokens in an alphabet of bytes; one added token that stands for itself."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: at for at, character in enumerate(alphabet)} | {"Ġt": 256, "he": 257, "Ġthe": 258}
    made = Vocabulary(models.BPE(vocab, [("Ġ", "t"), ("h", "e"), ("Ġt", "he")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<image>", "<s>"])
    made.add_tokens([AddedToken("<tool — call>"), AddedToken("<think>")])
    made.save(str(path))
    return path


def gemma_with_codes(path: Path) -> Path:
    return gemma_like(path, 1600, 1599, locations=1024, segments=128)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "llama": llama_like,
    "llama first": llama_like_first,
    "gemma": gemma_like,
    "gemma with codes": gemma_with_codes,
    "byte level": byte_level,
}


OFFICIAL = [pytest.param(name, marks=pytest.mark.shared) for name in ("llava15", "paligemma")]


@pytest.fixture(scope="module", params=[*MAKERS, *OFFICIAL])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    if request.param in MAKERS:
        return MAKERS[request.param](target)
    shared: Path = request.getfixturevalue("shared")
    target.write_bytes(gzip.decompress((shared / "vocab" / request.param / "tokenizer.json.gz").read_bytes()))
    return target


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> JsonTokenizer:
    return JsonTokenizer(path, [2, 1], CONTENT_TOKENS)


@pytest.fixture(scope="module")
def reference(path: Path) -> Vocabulary:
    """The package's own, special tokens of a text off, content tokens added."""
    from tokenizers import AddedToken

    loaded: Vocabulary = Vocabulary.from_file(str(path))
    loaded.encode_special_tokens = True
    vocabulary = loaded.get_vocab()
    loaded.add_tokens([AddedToken(name, special=False) for name in CONTENT_TOKENS if name in vocabulary])
    return loaded


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(gemma_with_codes(tmp_path_factory.mktemp("small") / "tokenizer.json"), [1], CONTENT_TOKENS)


def shown(tokenizer: JsonTokenizer, ids: list[int]) -> str:
    """As a text stream shows an answer."""
    text = b"".join(map(tokenizer.visible_bytes, ids)).decode("utf-8", "replace")
    return text.removeprefix(" ") if tokenizer.drops_first_blank else text


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_and_is_decoded_as_the_package_does(
    tokenizer: JsonTokenizer, reference: Vocabulary, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False).ids
    assert shown(tokenizer, ids) == reference.decode(ids, skip_special_tokens=True)
    kept = "▁" not in text and "<0x" not in text  # SentencePiece's own signs
    if kept and not text.startswith(" "):  # to one blank at the beginning, some files add none
        assert shown(tokenizer, ids) == text


def test_every_token_alone_is_decoded_as_the_package_does(tokenizer: JsonTokenizer, reference: Vocabulary) -> None:
    for token in range(min(tokenizer.vocab_size, 5000)):
        assert shown(tokenizer, [token]) == reference.decode([token], skip_special_tokens=True), token


def test_sizes_and_ids(tokenizer: JsonTokenizer, reference: Vocabulary) -> None:
    vocabulary = reference.get_vocab()
    assert tokenizer.vocab_size == max(vocabulary.values()) + 1 == reference.get_vocab_size()
    assert tokenizer.longest_token >= max(map(len, vocabulary))
    assert tokenizer.id_of("<image>") == vocabulary["<image>"]
    assert tokenizer.visible_bytes(tokenizer.id_of("<image>")) == b""
    assert tokenizer.visible_bytes(tokenizer.vocab_size + 7) == b""
    assert (tokenizer.stop_ids, tokenizer.end_of_text) == ({1, 2}, 2)
    with pytest.raises(
        BundleError, match=r"tokenizer\.json has no added token <nothing>; use the tokenizer\.json that"
    ):
        tokenizer.id_of("<nothing>")


def test_no_special_token_comes_out_of_text(tokenizer: JsonTokenizer, reference: Vocabulary) -> None:
    special = {at for at, token in reference.get_added_tokens_decoder().items() if token.special}
    assert special
    assert not special & set(tokenizer.encode(f"a{HOSTILE} {HOSTILE}"))


@given(ANY_TEXT)
@settings(max_examples=200, deadline=None)
def test_any_text_survives_a_round_trip(small: JsonTokenizer, text: str) -> None:
    """Lone surrogates, control characters, unassigned code points."""
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert shown(small, small.encode(text)) == valid.replace("▁", " ")


def test_a_lone_surrogate_becomes_the_replacement_character(tokenizer: JsonTokenizer) -> None:
    assert shown(tokenizer, tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("unit", ["a", " ", "\n", "\t", "中", "ab ", "\u0300", "\u3000", "<loc", "<loc0001>", "😀"])
def test_a_mebibyte_of_text_takes_no_minute(small: JsonTokenizer, unit: str) -> None:
    """With the official vocabularies of Llama and Gemma each took below 2 s."""
    text = unit * ((1 << 20) // len(unit.encode()))
    started = time.perf_counter()
    assert len(small.encode(text)) > 1000
    assert time.perf_counter() - started < 20


def test_content_tokens_keep_their_ids_and_are_shown(tmp_path: Path) -> None:
    path = gemma_with_codes(tmp_path / "tokenizer.json")
    plain, with_codes = JsonTokenizer(path, [1]), JsonTokenizer(path, [1], CONTENT_TOKENS)
    text = "<loc0512><seg001> cat"
    number = json.loads(path.read_text())["model"]["vocab"]["<loc0512>"]
    assert with_codes.encode(text)[0] == number == with_codes.id_of("<loc0512>")
    assert number not in plain.encode(text)
    assert with_codes.vocab_size == plain.vocab_size == 1600
    assert with_codes.visible_bytes(number) == b"<loc0512>"


def test_what_follows_a_control_token_begins_no_prompt(tmp_path: Path) -> None:
    """Where the blank is written before the first word only, as the package does it for a whole prompt."""
    path = llama_like_first(tmp_path / "tokenizer.json")
    tokenizer, reference = JsonTokenizer(path, [2]), Vocabulary.from_file(str(path))
    whole = reference.encode("USER: <image>\nWhat? <image>x", add_special_tokens=False).ids
    image = [tokenizer.id_of("<image>")]
    later = [tokenizer.encode(text, later=True) for text in ("\nWhat? ", "x")]
    assert [*tokenizer.encode("USER: "), *image, *later[0], *image, *later[1]] == whole
    everywhere = JsonTokenizer(llama_like(tmp_path / "other.json"), [2])
    assert everywhere.encode("x", later=True) == everywhere.encode("x")


def test_a_file_may_not_cut_or_fill_up(tmp_path: Path) -> None:
    path = gemma_like(tmp_path / "tokenizer.json")
    content = json.loads(path.read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": "<pad>",
    }  # fmt: skip
    path.write_text(json.dumps(content))
    assert len(JsonTokenizer(path, [1]).encode("q" * 10)) == 10


def with_decoder(path: Path, decoder: Any) -> Path:
    content = json.loads(gemma_like(path).read_text())
    path.write_text(json.dumps({**content, "decoder": decoder}))
    return path


@pytest.mark.parametrize(
    ("decoder", "shown"),
    [
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "WordPiece"),
        ({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}, "Regex"),
        ({"type": "Strip", "content": " ", "start": 1, "stop": 0}, "Strip"),
        ({"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "BPEDecoder", "suffix": "x"}]}, "BPEDecoder"),
    ],
)
def test_a_decoder_that_is_not_carried_out_is_refused(tmp_path: Path, decoder: Any, shown: str) -> None:
    path = with_decoder(tmp_path / "tokenizer.json", decoder)
    with pytest.raises(BundleError, match=rf"tokenizer\.json: its decoder has a step .*{shown}.*published checkpoint"):
        JsonTokenizer(path, [1])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"no JSON",
        b"[" * 100_000,
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer \(.+\); copy it again") as raised:
        JsonTokenizer(path, [1])
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"missing\.json cannot be read \(No such file"):
        JsonTokenizer(tmp_path / "missing.json", [1])
    with pytest.raises(BundleError, match=r"cannot be read \(it is a folder\); copy it from the published checkpoint"):
        JsonTokenizer(tmp_path, [1])


def test_a_folder_without_a_tokenizer_json(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing; copy it from the published checkpoint"):
        require_tokenizer_json(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(
        BundleError, match=r"tokenizer\.model alone is not read; take .* huggingface\.co, or .*AutoToke"
    ):
        require_tokenizer_json(tmp_path)
    llama_like(tmp_path / "tokenizer.json")
    require_tokenizer_json(tmp_path)
