"""Qwen-VL's tokenizer: tiktoken ranks, special tokens at the ids after them, nothing hard-coded to one vocabulary.

Text that a user typed is always encoded with special tokens off: it cannot become a control token, and no path or
address in it is ever opened.
"""

import base64
import binascii
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tiktoken

from vlm_trt.bundle.errors import BundleError, PromptError
from vlm_trt.bundle.reading import read_bytes

# Source: Qwen's published tokenizer.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))
_GROUNDING = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
_IMAGE = ("<img>", "</img>", "<imgpad>")

# Beyond it the pattern's backtracking overflows the stack of tiktoken's regex engine (seen from 500,000 on).
_MAX_BLANKS = 100_000
# Normalisation sorts the marks on one letter by insertion: 64,000 of them take seconds, 1 MiB of them minutes. Real
# text stays far below: the stream-safe format allows 30. Source: Unicode Standard Annex 15.
_MAX_MARKS = 1_000

Special = Literal["none", "grounding", "image_tags", "all"]


class Tokenizer:
    """Text ↔ ids.

    `special` says which tags of a text become their token: "none" for whatever a user typed, "grounding" for boxes
    in an assistant's earlier answer; "image_tags" and "all" reproduce the original, for comparison with it.
    """

    def __init__(self, path: Path, image_tokens: int = 256, chat_format: str = "chatml") -> None:
        """
        Args:
            path: a `qwen.tiktoken` file.
            image_tokens: positions of one picture.
            chat_format: "chatml" or "raw"; which ids end an answer depends on it.
        Raises:
            BundleError: the file is missing or no list of ranks.
        """
        ranks = _read_ranks(path)
        names = (*_CONTROL, *_GROUNDING, *_IMAGE)
        self.image_tokens = image_tokens
        self.special = {name: len(ranks) + i for i, name in enumerate(names)}
        self.vocab_size = len(ranks) + len(names)
        self._encoding = tiktoken.Encoding(
            path.stem, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special
        )
        self._allowed: dict[Special, frozenset[str]] = {
            "none": frozenset(),
            "grounding": frozenset(_GROUNDING),
            "image_tags": frozenset((*_GROUNDING, *_IMAGE)),
            "all": frozenset(names),
        }
        self.end_of_text = self.special["<|endoftext|>"]
        self.im_start, self.im_end = self.special["<|im_start|>"], self.special["<|im_end|>"]
        self.image_start, self.image_end = self.special["<img>"], self.special["</img>"]
        self.image_pad = self.special["<imgpad>"]
        self.first_special = len(ranks)
        self.longest_token = max(map(len, ranks))  # bytes
        self._invisible = {self.special[name] for name in (*_CONTROL, *_IMAGE)}
        turn_ends = (self.im_end, self.im_start) if chat_format == "chatml" else ()
        self._stop_ids = frozenset((*turn_ends, self.end_of_text))

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer; the base model ends only with `<|endoftext|>`."""
        return self._stop_ids

    @property
    def drops_first_blank(self) -> bool:
        return False

    def encode(self, text: str, special: Special = "none") -> list[int]:
        """Ids of a text, NFC-normalised; a lone surrogate becomes U+FFFD.

        Raises:
            PromptError: more blanks or combining marks in a row than can be tokenized; in the modes "image_tags"
                and "all" also an unclosed image tag or a path too long.
        """
        for what, limit, belongs in (("blanks", _MAX_BLANKS, str.isspace), ("combining marks", _MAX_MARKS, _is_mark)):
            if _has_longer_run(text, limit, belongs):
                raise PromptError(f"the text has more than {limit:,} {what} in a row; remove them")
        normal = unicodedata.normalize("NFC", text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        allowed = self._allowed[special]
        if not allowed:
            return self._encoding.encode_ordinary(normal)
        ids = self._encoding.encode(normal, allowed_special=set(allowed), disallowed_special=())
        return self._with_image_spans(ids) if self.image_start in ids else ids

    def image_span(self, name: bytes) -> list[int]:
        """What stands between `<img>` and `</img>`: the name's bytes as ids, then padding.

        Raises:
            PromptError: the name is longer than the span.
        """
        if len(name) > self.image_tokens:
            raise PromptError(f"an image name of {len(name)} bytes is longer than the {self.image_tokens} it may have")
        return [*name, *[self.image_pad] * (self.image_tokens - len(name))]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD. The bytes in an image span are its name."""
        parts: list[bytes] = []
        in_image = False
        for token in ids:
            if in_image and token != self.image_end:
                parts.append(bytes([token]) if token < 256 else b"")
                continue
            in_image = token == self.image_start
            if not (skip_special and token >= self.first_special):
                parts.append(self.token_bytes(token))
        return b"".join(parts).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """A token's bytes; of an id beyond the vocabulary, which an untrained model may choose, none."""
        return self._encoding.decode_single_token_bytes(token) if token < self.vocab_size else b""

    def visible_bytes(self, token: int) -> bytes:
        """What a token adds to a shown answer: nothing for control and image tokens, the tag for grounding."""
        return b"" if token in self._invisible else self.token_bytes(token)

    def _with_image_spans(self, ids: list[int]) -> list[int]:
        """Every `<img>…</img>` filled up to its length with the path's bytes."""
        out: list[int] = []
        at = 0
        while at < len(ids):
            out.append(ids[at])
            if ids[at] == self.image_start:
                if self.image_end not in ids[at:]:
                    raise PromptError("<img> is not closed by </img>")
                stop = ids.index(self.image_end, at)
                path = b"".join(self.token_bytes(token) for token in ids[at + 1 : stop])
                out += self.image_span(path)
                at = stop - 1
            at += 1
        return out


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Token → rank, the ranks 0…n−1."""
    ranks: dict[bytes, int] = {}
    try:
        for line in read_bytes(path).splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}); copy it from the published checkpoint") from None
    except (ValueError, binascii.Error):
        raise BundleError(f"{path} is no tiktoken vocabulary; copy it from the published checkpoint") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise BundleError(f"{path}: its ranks are not 0…n−1; copy it again from the published checkpoint")
    absent = sum(bytes([byte]) not in ranks for byte in range(256))
    if absent:
        raise BundleError(
            f"{path}: {absent} of the 256 single bytes have no rank; copy it again from the published checkpoint"
        )
    return ranks


def _has_longer_run(text: str, limit: int, belongs: Callable[[str], bool]) -> bool:
    """Whether more than `limit` neighbouring characters belong, in linear time.

    Such a run covers a position of the grid 0, limit + 1, 2 · limit + 2, …; only around these is the text looked at.
    """
    for at in range(0, len(text), limit + 1):
        if not belongs(text[at]):
            continue
        first = last = at
        while first > 0 and at - first < limit and belongs(text[first - 1]):
            first -= 1
        while last + 1 < len(text) and last - first < limit and belongs(text[last + 1]):
            last += 1
        if last - first >= limit:
            return True
    return False


def _is_mark(character: str) -> bool:
    """Whether normalisation moves the character among its neighbours; a few do only once decomposed (U+0F73)."""
    return unicodedata.combining(unicodedata.normalize("NFD", character)[0]) != 0
