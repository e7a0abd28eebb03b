"""Answers as OpenAI's clients read them: messages, chunks, texts, log-probabilities, usage; and places beside them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from time import time
from typing import Any, Protocol, runtime_checkable

from vlm_trt.families.contract import Tokenizer
from vlm_trt.runtime.model import Answer
from vlm_trt.runtime.requests import Token

Document = dict[str, Any]
# For what cannot come at all: JSON has no infinity.
_LEAST_LOGPROB = -9999.0


class Form(Protocol):
    """How one kind of request is answered."""

    def whole(self, answer: Answer) -> Document:
        """The answer in one piece."""


@runtime_checkable
class StreamedForm(Form, Protocol):
    """The same, where the answer may be sent piece by piece."""

    def first(self) -> Document:
        """What opens a stream."""

    def piece(self, text: str, tokens: Sequence[Token]) -> Document:
        """New text of a stream."""

    def last(self, answer: Answer, tokens: Sequence[Token]) -> Document:
        """What ends a stream, but for its usage."""

    def usage(self, answer: Answer) -> Document:
        """The usage alone."""


@dataclass(frozen=True)
class Heading:
    """What every document of one answer begins with."""

    number: str
    model: str
    usage_follows: bool = False  # at the end of the stream; until then it is null
    created: int = field(default_factory=lambda: int(time()))

    def document(self, kind: str, choices: list[Document]) -> Document:
        head = {"id": self.number, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return head | ({"usage": None} if self.usage_follows else {})


def usage(answer: Answer) -> Document:
    """Tokens of the prompt, those of its pictures among them, and of the answer, its end among them."""
    asked, said = len(answer.prompt_ids), len(answer.ids)
    return {
        "prompt_tokens": asked,
        "completion_tokens": said,
        "total_tokens": asked + said,
        "prompt_tokens_details": {"cached_tokens": answer.reused_tokens},
    }


def extension(answer: Answer) -> Document:
    """What OpenAI's answers have no place for: places, in pixels of the pictures as sent, and what is left out."""
    return {
        "boxes": [asdict(one) for one in answer.groundings],
        "plain_text": answer.plain_text,
        "malformed_places": answer.malformed_places,
        "dropped_turns": answer.dropped_turns,
    }


@dataclass(frozen=True)
class Words:
    """Tokens as text, for log-probabilities."""

    tokenizer: Tokenizer
    ignores_end: bool = False

    def shown(self, tokens: Sequence[Token]) -> list[Token]:
        """Those that belong to the text: the one that ended it does not."""
        stops = frozenset() if self.ignores_end else self.tokenizer.stop_ids
        return [one for one in tokens if one.id not in stops]

    def text(self, token: int) -> str:
        """A token's text; a control token has none, so its number stands for it."""
        return self.tokenizer.visible_bytes(token).decode("utf-8", "replace") or f"token_id:{token}"

    def entry(self, token: int, logprob: float) -> Document:
        written = self.tokenizer.visible_bytes(token)
        return {"token": self.text(token), "logprob": finite(logprob), "bytes": list(written) if written else None}


def finite(logprob: float) -> float:
    return max(logprob, _LEAST_LOGPROB)
