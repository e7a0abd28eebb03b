"""What came of simulated requests, as figures under the names of AIPerf."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from vlm_trt.fleet.workload import Arrival


class How(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  # no replica had room for it
    LOST = "lost"  # with the replica that had it


@dataclass(frozen=True, slots=True)
class Ended:
    """One request; NaN for what did not happen."""

    asked: Arrival
    how: How
    replica: int | None  # the last that had it
    first_s: float  # when its first token came
    end_s: float  # when it was answered, refused or lost
    reused_tokens: int  # positions of its prompt that were in the cache already

    @property
    def first_token_ms(self) -> float:
        return 1000 * (self.first_s - self.asked.at_s)

    @property
    def latency_ms(self) -> float:
        return 1000 * (self.end_s - self.asked.at_s)

    @property
    def between_ms(self) -> float:
        """(request latency − time to first token) / (tokens − 1); NaN with one token."""
        gaps = self.asked.answer_tokens - 1
        return (self.latency_ms - self.first_token_ms) / gaps if gaps else float("nan")


@dataclass(frozen=True)
class Quantiles:
    p50: float
    p99: float


@dataclass(frozen=True)
class Figures:
    """Of the requests that arrived in a span of time."""

    requests: int
    answered: int
    refused: int
    lost: int  # of all, whenever they arrived
    time_to_first_token: Quantiles | None  # milliseconds, of those that were answered; None: none was
    inter_token_latency: Quantiles | None  # of those with two tokens or more
    request_latency: Quantiles | None
    output_token_throughput: float  # tokens a second that were asked for and answered
    busy: tuple[float, ...]  # of each replica, the share of the time in which it had something to do
    running: float  # sequences that were answered at a time, on average of all replicas
    reused_share: float  # of all prompt tokens, those that were in a cache already


@dataclass(frozen=True)
class Outcome:
    """Of a simulation."""

    ended: tuple[Ended, ...]  # in order of arrival
    busy: tuple[tuple[tuple[float, float], ...], ...]  # of each replica, from when to when it had something to do

    def figures(self, begin_s: float = 0.0) -> Figures:
        """Of what arrived from then on, until the last request arrived."""
        stop_s = self.ended[-1].asked.at_s
        ended = [one for one in self.ended if one.asked.at_s >= begin_s]
        answered = [one for one in ended if one.how is How.ANSWERED]
        seconds = max(stop_s - begin_s, 1e-9)
        prompts = sum(one.asked.prompt_tokens for one in answered)
        return Figures(
            requests=len(ended),
            answered=len(answered),
            refused=sum(one.how is How.REFUSED for one in ended),
            lost=sum(one.how is How.LOST for one in self.ended),
            time_to_first_token=_quantiles([one.first_token_ms for one in answered]),
            inter_token_latency=_quantiles([one.between_ms for one in answered if one.asked.answer_tokens > 1]),
            request_latency=_quantiles([one.latency_ms for one in answered]),
            output_token_throughput=sum(one.asked.answer_tokens for one in answered) / seconds,
            busy=tuple(_covered(spans, begin_s, stop_s) for spans in self.busy),
            running=_covered([(one.first_s, one.end_s) for one in answered], begin_s, stop_s) / len(self.busy),
            reused_share=sum(one.reused_tokens for one in answered) / prompts if prompts else 0.0,
        )


def _quantiles(values: Sequence[float]) -> Quantiles | None:
    if not values:
        return None
    p50, p99 = (float(one) for one in np.percentile(np.asarray(values), [50, 99]))
    return Quantiles(p50, p99)


def _covered(spans: Sequence[tuple[float, float]], begin_s: float, stop_s: float) -> float:
    """How many of the spans cover a moment in between, on average."""
    if stop_s <= begin_s:
        return 0.0
    return sum(max(0.0, min(end, stop_s) - max(begin, begin_s)) for begin, end in spans) / (stop_s - begin_s)
