"""One request and its answer, as the log and the metrics tell them. Nothing of what was said is in it."""

from dataclasses import dataclass, field
from time import monotonic
from typing import cast
from uuid import uuid4

from starlette.types import Scope

from vlm_trt.runtime.model import Answer


@dataclass
class Exchange:
    """Filled in by whoever learns of it, told once it has ended."""

    method: str
    number: str = field(default_factory=lambda: uuid4().hex)  # tells this one from all others, for clients too
    started: float = field(default_factory=monotonic)
    status: int = 0  # 0: none was sent
    model: str | None = None  # by its name here, never as the client wrote it
    streamed: bool = False
    pictures: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    first_token_ms: float | None = None
    reason: str | None = None  # the code of what was refused, failed or was given up

    @property
    def elapsed_s(self) -> float:
        return monotonic() - self.started

    def ended_with(self, answer: Answer) -> None:
        self.prompt_tokens, self.completion_tokens = len(answer.prompt_ids), len(answer.ids)
        self.cached_tokens, self.finish_reason = answer.reused_tokens, answer.finish_reason


def exchange_of(scope: Scope) -> Exchange:
    """That of a request which has come in."""
    return cast(Exchange, scope["state"]["exchange"])
