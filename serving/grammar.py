"""Answers that follow a JSON schema: which tokens may come next, by llguidance, compiled for one vocabulary.

A schema comes from a stranger, so it is bounded before it is compiled, and the compiler and each step have limits of
their own. White space is bounded too: a model that is allowed blanks for ever sometimes writes blanks for ever.
"""

import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.installation import how_to_install
from vlm_trt.families.contract import Tokenizer
from vlm_trt.serving.errors import refused
from vlm_trt.serving.requests import FormatType, ResponseFormat

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MOST_BYTES = 64 << 10
MOST_DEPTH = 24
MOST_PARTS = 4_000  # values in the schema
# What llguidance does not carry out. Named here, because its own words are not passed on.
UNSUPPORTED = (
    "not", "if", "then", "else", "uniqueItems", "contains", "minContains", "maxContains", "propertyNames",
    "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "x-guidance",
)  # fmt: skip
# Nothing, a blank, or a new line and its indent.
_BLANKS = r"( |\n {0,24})?"
_AT = "response_format.json_schema.schema"


class Constraint:
    """What one answer may be. The scheduler's thread asks and tells it."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids may come next [vocab].

        Raises:
            UsageError: the schema takes more work than a step may.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        found = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not found.any():
            raise UsageError("response_format takes too much work to follow from here on; simplify the schema")
        return found

    def accept(self, token: int) -> None:
        """
        Raises:
            UsageError: that id was not allowed.
        """
        if not self._matcher.consume_token(token):
            raise UsageError("response_format does not allow what the model wrote; simplify the schema")


class Grammars:
    """Makes constraints for one model."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """
        Args:
            tokenizer: of the model.
            vocab_size: numbers of its logits, which may be more than the tokenizer's.
        """
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._vocabulary: LLTokenizer | None = None
        self._lock = Lock()

    def constraint(self, wanted: ResponseFormat | None) -> Constraint | None:
        """What an answer of that format may be; None where it may be anything.

        Raises:
            ApiError: llguidance is not installed, or the schema is not one that is carried out.
        """
        if wanted is None or wanted.type is FormatType.TEXT:
            return None
        if find_spec("llguidance") is None:
            raise refused(
                "response_format",
                f"needs a package that is not installed here; whoever runs this server can {how_to_install('guided')}",
                "unsupported_parameter",
            )
        schema = {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema
        require_bounded(schema)
        return Constraint(self._matcher(schema), self._vocab_size)

    def _matcher(self, schema: Mapping[str, object]) -> "LLMatcher":
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            initial_lexer_fuel=1_000_000, step_lexer_fuel=200_000, max_grammar_size=100_000, max_lexer_states=50_000,
            max_items_in_row=1_000, verbose_errors=False,
        )  # fmt: skip
        overrides: Any = {"whitespace_flexible": True, "whitespace_pattern": _BLANKS}
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=overrides)
            matcher = LLMatcher(self._known_vocabulary(), grammar, log_level=0, limits=limits)
        except ValueError:
            raise refused(_AT, "is no JSON schema; send one") from None
        if matcher.is_error():
            raise refused(_AT, "is no JSON schema that can be followed; check its types, references and patterns")
        return matcher

    def _known_vocabulary(self) -> "LLTokenizer":
        """Made when it is first asked for: it takes most of a second."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._vocabulary is None:
                vocabulary: Any = _Vocabulary(self._tokenizer, self._vocab_size)
                stops = sorted(self._tokenizer.stop_ids)
                self._vocabulary = LLTokenizer(vocabulary, n_vocab=self._vocab_size, eos_token=stops)
            return self._vocabulary


class _Vocabulary:
    """A tokenizer, as llguidance wants to be told of it: every id's bytes, none for control tokens."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.end_of_text
        self.tokens = [tokenizer.visible_bytes(number) for number in range(vocab_size)]
        self.special_token_ids = [number for number, shown in enumerate(self.tokens) if not shown]
        self._ids = {shown: number for number, shown in enumerate(self.tokens) if shown}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        """Ids of exactly those bytes: what a schema leaves no choice about is written with them.

        As the tokenizer has them, if it adds nothing: some put a blank in front.
        """
        wanted = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
        ids = self._tokenizer.encode(wanted.decode("utf-8", "replace"))
        for found in (ids, ids[1:]):
            if b"".join(self.tokens[number] for number in found) == wanted:
                return found
        return self._greedy(wanted)

    def _greedy(self, wanted: bytes) -> list[int]:
        """The longest tokens first; a byte that is no token is left out, and vocabularies have all of them."""
        found, at = [], 0
        while at < len(wanted):
            lengths = range(min(self._longest, len(wanted) - at), 0, -1)
            length = next((one for one in lengths if wanted[at : at + one] in self._ids), 0)
            found += [self._ids[wanted[at : at + length]]] if length else []
            at += length or 1
        return found


def require_bounded(schema: Mapping[str, object]) -> None:
    """
    Raises:
        ApiError: the schema is too large, too deep, or uses what is not carried out.
    """
    if len(json.dumps(schema)) > MOST_BYTES:
        raise refused(_AT, f"has more than {MOST_BYTES >> 10} KiB; simplify it")
    level: list[Any] = [schema]
    parts = 0
    for _ in range(MOST_DEPTH):
        parts += len(level)
        if parts > MOST_PARTS:
            raise refused(_AT, f"has more than {MOST_PARTS} parts; simplify it")
        for part in level:
            if isinstance(part, dict) and (found := next((key for key in UNSUPPORTED if key in part), None)):
                raise refused(_AT, f"uses {found}, which is not carried out; leave it out", "unsupported_parameter")
        level = [inner for part in level for inner in _schemas_in(part)]
        if not level:
            return
    raise refused(_AT, f"is nested deeper than {MOST_DEPTH} levels; simplify it")


def _schemas_in(part: Any) -> Iterator[Any]:
    """The schemas that one holds. What stands by a name of its author's, as a property, is no keyword."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list):
            yield from value
        elif isinstance(value, dict) and key not in ("const", "default"):
            yield value
