"""One request and what has become of it."""

from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter

from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.features import Features, ImageFeatures
from vlm_trt.runtime.locating import Locator
from vlm_trt.runtime.pictures import Asked
from vlm_trt.runtime.requests import Request, Token
from vlm_trt.runtime.sampler import Sampler
from vlm_trt.runtime.slots import Key, Slot
from vlm_trt.runtime.speculation import Drafts
from vlm_trt.runtime.text_stream import TextStream
from vlm_trt.runtime.timing import StageClock


class Phase(StrEnum):
    """What a sequence does next."""

    WAITING = "waiting"  # for its pictures, and for a slot
    PREFILL = "prefill"  # in its slot, until the whole prompt is in the cache
    DECODE = "decode"
    ENDED = "ended"


@dataclass(eq=False)
class Generation:
    """One sequence. Written by `Generator` and `Scheduler` only, in the thread that owns the engine."""

    request: Request
    clock: StageClock
    table: PositionTable
    sampler: Sampler
    text_stream: TextStream
    asked: Asked  # its pictures' features
    phase: Phase = Phase.WAITING
    passed_over: int = 0  # how often a later one was prefilled first
    opened: float = field(default_factory=perf_counter)
    queue_ms: float = 0.0  # from then to its slot
    slot: Slot | None = None  # from its first chunk to its end
    images: list[ImageFeatures] = field(default_factory=list)
    features: Features | None = None  # of its pictures, until the whole prompt is in the cache
    keys: list[Key] = field(default_factory=list)  # what the positions of the prompt hold
    reused_tokens: int = 0  # positions of the prompt that were in the cache already
    ids: list[int] = field(default_factory=list)
    locator: Locator | None = None  # of an answer of places
    drafts: Drafts | None = None  # from the first that was asked for
    tokens: list[Token] = field(default_factory=list)  # where log-probabilities were asked for
    text: str = ""
    finish_reason: str | None = None  # "stop", "length", "cancelled" or "error"
    error: Exception | None = None  # why it ended with "error"

    @property
    def place(self) -> Slot:
        """The slot that it has, from its first chunk to its end."""
        assert self.slot is not None
        return self.slot

    @property
    def unfilled(self) -> int:
        """Positions of the prompt that are still to be prefilled."""
        return max(0, len(self.request.prompt.ids) - (0 if self.slot is None else len(self.slot.keys)))
