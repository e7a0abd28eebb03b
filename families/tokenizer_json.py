"""Tokenizers that come as a `tokenizer.json`: Llama's, Gemma's and other BPE vocabularies, read by `tokenizers`.

Text is always encoded with special tokens off: what a user typed cannot become a control token. Prompts place control
tokens by id, between stretches of text. All such inputs of 1 MiB that were tried took below 2 s, in time linear in
their length: blanks, line breaks, one letter, combining marks, emoji, pieces of tags. So no run has a bound.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Vocabulary

from vlm_trt.bundle.errors import BundleError
from vlm_trt.bundle.reading import LARGE_BYTES, read_bytes
from vlm_trt.families.token_bytes import byte_level, replaced

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"


class JsonTokenizer:
    """Text ↔ ids.

    Four kinds of tokens: ordinary ones; special ones, which no text becomes and which are not shown; shown ones, which
    no text becomes either (`<|box_start|>`); and content tokens, which stand for themselves in any text, typed or
    generated (`<loc0512>`, runs of line breaks).
    """

    def __init__(
        self,
        path: Path,
        stop_ids: Sequence[int],
        content_tokens: Iterable[str] = (),
        stop_tokens: Sequence[str] = (),
        shown_tokens: Iterable[str] = (),
    ) -> None:
        """
        Args:
            path: a `tokenizer.json`.
            stop_ids: that end an answer, the first of them the end of text.
            content_tokens: names that stand in the vocabulary and must be found in text although the file does not
                list them among its added tokens; those that the vocabulary lacks are left out.
            stop_tokens: names that end an answer too.
            shown_tokens: names that answers show and no text becomes, whether the file calls them special or not; those
                that the vocabulary lacks are left out.
        Raises:
            BundleError: the file is missing, damaged, or of a kind this version does not read.
        """
        assert stop_ids, "an answer must be able to end"
        self.path = path
        self._vocabulary = _read(path)
        shown = frozenset(shown_tokens)
        _add(self._vocabulary, content_tokens, path, special=False)
        _add(self._vocabulary, shown, path, special=True)
        self._later = _without_first_blank(self._vocabulary)
        self._decoding = _Decoding(self._vocabulary, path)
        self.end_of_text = stop_ids[0]
        ids = self._vocabulary.get_vocab()
        self.vocab_size = max(ids.values()) + 1
        self.longest_token = max(map(len, ids))  # characters
        added = self._vocabulary.get_added_tokens_decoder()
        self._added = {token.content: number for number, token in added.items()}
        self._special = frozenset(
            number for number, token in added.items() if token.special and token.content not in shown
        )
        self._stop_ids = frozenset((*stop_ids, *map(self.id_of, stop_tokens)))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer."""
        return self._stop_ids

    @property
    def drops_first_blank(self) -> bool:
        """Whether decoding a text removes the blank that encoding it has put in front."""
        return self._decoding.drops_first_blank

    def id_of(self, name: str) -> int:
        """The id of a special or content token.

        Raises:
            BundleError: the file has no such token.
        """
        if name not in self._added:
            raise BundleError(
                f"{self.path} has no added token {name}; use the {TOKENIZER_FILE} that belongs to this checkpoint"
            )
        return self._added[name]

    def is_special(self, token_id: int) -> bool:
        """Whether no text becomes that token."""
        return token_id in self._special

    def encode(self, text: str, *, later: bool = False) -> list[int]:
        """Ids of plain text; a lone surrogate becomes U+FFFD.

        Args:
            text: whatever a user typed, or a template.
            later: the text follows a control token and does not begin the prompt. Some files write a blank before
                the first word of a prompt only.
        """
        valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = (self._later if later else self._vocabulary).encode(valid, add_special_tokens=False).ids
        return ids

    def visible_bytes(self, token_id: int) -> bytes:
        """What a token adds to the shown text; nothing for special tokens, and for ids beyond the vocabulary."""
        token = None if token_id in self._special else self._vocabulary.id_to_token(token_id)
        return b"" if token is None else self._decoding.bytes_of(token)


class _Decoding:
    """A file's decoder, token by token.

    Raises:
        BundleError: a decoder that this version does not carry out.
    """

    def __init__(self, vocabulary: Vocabulary, path: Path) -> None:
        self.drops_first_blank = False
        self._byte_level = self._byte_fallback = False
        self._replacements: list[tuple[str, str]] = []
        fused = False  # from here on, steps act on the whole text
        for step in _steps(vocabulary.decoder, "decoders"):
            match step:
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                    self._replacements.append((old, new))
                case {"type": "ByteFallback"}:
                    self._byte_fallback = True
                case {"type": "ByteLevel"}:
                    self._byte_level = True
                case {"type": "Fuse"}:
                    fused = True
                case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
                    self.drops_first_blank = True
                case _:
                    raise BundleError(
                        f"{path}: its decoder has a step {json.dumps(step, ensure_ascii=False)[:80]}, which this "
                        f"version does not carry out; use the {TOKENIZER_FILE} of the published checkpoint"
                    )

    def bytes_of(self, token: str) -> bytes:
        if self._byte_level:
            return byte_level(token)
        return replaced(token, self._replacements, byte_fallback=self._byte_fallback)


def require_tokenizer_json(folder: Path) -> None:
    """
    Raises:
        BundleError: the folder has no `tokenizer.json`; with a word more where it has a `tokenizer.model` instead.
    """
    path = folder / TOKENIZER_FILE
    if path.exists():
        return
    if (folder / SENTENCEPIECE_FILE).exists():
        raise BundleError(
            f"{path} is missing, and {SENTENCEPIECE_FILE} alone is not read; take {TOKENIZER_FILE} from the model's "
            "repository on huggingface.co, or write it with transformers' AutoTokenizer.from_pretrained(…)"
            ".save_pretrained(…)"
        )
    raise BundleError(f"{path} is missing; copy it from the published checkpoint")


def _read(path: Path) -> Vocabulary:
    """The file's tokenizer, which neither cuts nor fills up nor obeys what it is given."""
    try:
        text = read_bytes(path, LARGE_BYTES).decode()
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); copy it from the published checkpoint") from None
    except UnicodeDecodeError:
        raise _damaged(path, "it is no UTF-8") from None
    try:
        vocabulary = Vocabulary.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # `tokenizers` raises plain Exceptions, and where it panics a BaseException
        raise _damaged(path, " ".join(str(error).split())[:120]) from None
    if not vocabulary.get_vocab_size():
        raise _damaged(path, "its vocabulary is empty")
    vocabulary.no_truncation()
    vocabulary.no_padding()
    vocabulary.encode_special_tokens = True
    return vocabulary


def _damaged(path: Path, why: str) -> BundleError:
    return BundleError(f"{path} is no tokenizer ({why}); copy it again from the published checkpoint")


def _add(vocabulary: Vocabulary, names: Iterable[str], path: Path, *, special: bool) -> None:
    """Makes tokens of the vocabulary ones that are found in text, or special ones; their ids stay as they are."""
    before = {name: number for name in names if (number := vocabulary.token_to_id(name)) is not None}
    add = vocabulary.add_special_tokens if special else vocabulary.add_tokens
    add([AddedToken(name, special=special) for name in before])
    assert all(vocabulary.token_to_id(name) == number for name, number in before.items()), path


def _without_first_blank(vocabulary: Vocabulary) -> Vocabulary:
    """The tokenizer for what does not begin a prompt: another one only where a blank is written before the first word
    (Metaspace, `prepend_scheme` "first"; what transformers' Llama tokenizers save with `legacy=False`)."""
    if not any(step.get("prepend_scheme") == "first" for step in _steps(vocabulary.pre_tokenizer, "pretokenizers")):
        return vocabulary
    content = json.loads(vocabulary.to_str())
    for step in _flat(content["pre_tokenizer"], "pretokenizers"):
        if step.get("prepend_scheme") == "first":
            step["prepend_scheme"] = "never"
    later = Vocabulary.from_str(json.dumps(content))
    later.encode_special_tokens = True
    return later


def _steps(part: Any, several: str) -> list[dict[str, Any]]:
    """The steps of a part of the tokenizer, as its file has them."""
    return [] if part is None else _flat(json.loads(part.__getstate__()), several)


def _flat(step: dict[str, Any], several: str) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    return [inner for one in step[several] for inner in _flat(one, several)]
