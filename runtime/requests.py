"""What the scheduler is asked, and what it tells of each token."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.errors import UsageError
from vlm_trt.families.messages import Prompt
from vlm_trt.runtime.features import Prepared
from vlm_trt.runtime.sampler import Sampling, require_in_range

MOST_TOP_LOGPROBS = 20


class Constraint(Protocol):
    """What an answer may be, as a grammar that one sequence moves through; asked and told in the scheduler's thread."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which ids may come next [vocab]; a stop id among them where the answer may end."""

    def accept(self, token: int) -> None:
        """That id came."""


@dataclass(frozen=True)
class Request:
    """What to generate from one prompt."""

    prompt: Prompt
    sampling: Sampling
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    # Whether drafted tokens are checked, of a greedy answer (runtime/speculation.py); None: where nothing is quantized.
    speculation: bool | None = None
    ignore_eos: bool = False  # end-of-text is never chosen and the other stop ids do not stop
    top_logprobs: int | None = None  # how many likeliest ids are told with each token; None: no log-probabilities
    constraint: Constraint | None = None
    deadline: float | None = None  # on the scheduler's clock, seconds: what has not ended by then ends with an error
    prepared: tuple[Prepared | None, ...] = ()  # of its pictures, where somebody has had the time

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: a number out of its range, or an empty stop string.
        """
        require_in_range("max_new_tokens", self.max_new_tokens)
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MOST_TOP_LOGPROBS:
            raise UsageError(f"top_logprobs is {self.top_logprobs}; it must be 0…{MOST_TOP_LOGPROBS}")
        if not all(self.stop_strings):
            raise UsageError("a stop string is empty; leave it out")


@dataclass(frozen=True)
class Token:
    """One id of an answer, with what the model itself thought of it: before penalties, temperature and cuts."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # the likeliest ids and their log-probabilities, the first first
