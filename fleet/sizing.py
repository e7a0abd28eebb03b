"""How many replicas answer so many requests in such a time: the fewest that do in a simulation, all with the same
requests."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vlm_trt.bundle.errors import ResourceError
from vlm_trt.fleet.dispatch import Route
from vlm_trt.fleet.outcome import Figures
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.simulation import Death, simulate
from vlm_trt.fleet.workload import Arrival, Traffic, arrivals

MOST_REPLICAS = 256
# Requests that are counted, so that forty lie above p99; how many answers' time they take at least, so that a queue
# that grows is seen to grow; and how many are simulated at most, in half a minute.
_COUNTED, _LIFETIMES, _MOST_REQUESTS = 4_000, 10, 120_000
# Drawn to know what a request takes, before any is simulated.
_DRAWN = 4_000

# Makes a fresh chooser of replicas.
Router = Callable[[int], Route]


@dataclass(frozen=True)
class Question:
    """What is asked of a fleet: nobody is refused, and 99 of 100 requests have their first token in time."""

    traffic: Traffic
    first_token_ms: float
    kind: Kind
    max_seq_tokens: int
    seed: int = 0

    @cached_property
    def least_ms(self) -> float:
        """Milliseconds in which 99 of 100 requests have their first token where nobody else is there."""
        costs = self.kind.costs
        return float(np.percentile([costs.alone_ms(one.prompt_tokens, one.pictures) for one in self._drawn], 99))

    @cached_property
    def least_replicas(self) -> int:
        """Below it the work is more than they can do, however full they are and whatever they know already."""
        costs, slots = self.kind.costs, self.kind.slots
        token_ms = min(costs.step_ms.at(many) / many for many in range(1, slots + 1))
        each_ms = [
            costs.alone_ms(one.prompt_tokens - one.shared_tokens, 0 if one.shared_tokens else one.pictures)
            + (one.answer_tokens - 1) * token_ms
            for one in self._drawn
        ]
        return max(1, math.ceil(self.traffic.requests_per_second * float(np.mean(each_ms)) / 1000))

    @cached_property
    def lifetime_s(self) -> float:
        """Seconds that a request takes on average in a replica that is full and where none waits."""
        costs, step_ms = self.kind.costs, self.kind.costs.step_ms.at(self.kind.slots)
        each_ms = [costs.alone_ms(one.prompt_tokens, one.pictures) + one.answer_tokens * step_ms for one in self._drawn]
        return float(np.mean(each_ms)) / 1000

    @cached_property
    def begin_s(self) -> float:
        """Before it the fleet fills, and nothing is counted."""
        return 2 * self.lifetime_s + (self.traffic.think_s if self.traffic.turns > 1 else 0.0)

    @property
    def count(self) -> int:
        """Of requests that are to be simulated."""
        rate = self.traffic.requests_per_second
        return math.ceil(rate * self.begin_s + max(_COUNTED, rate * _LIFETIMES * self.lifetime_s))

    @cached_property
    def requests(self) -> tuple[Arrival, ...]:
        """All that are simulated: the same for every number of replicas."""
        return arrivals(self.traffic, self.count, self.max_seq_tokens, self.seed)

    @cached_property
    def _drawn(self) -> tuple[Arrival, ...]:
        return arrivals(self.traffic, _DRAWN, self.max_seq_tokens, self.seed)

    def met(self, figures: Figures) -> bool:
        """Whether so it is."""
        first = figures.time_to_first_token
        return figures.refused == 0 and first is not None and first.p99 <= self.first_token_ms

    def figures(self, replicas: int, router: Router, *, one_dies: bool = False) -> Figures:
        """What so many replicas do.

        Args:
            replicas: how many there are.
            router: chooses among them.
            one_dies: when counting begins, with all that it has, and does not come back.
        """
        deaths = [Death(0, self.begin_s)] if one_dies else []
        return simulate(self.requests, self.kind, replicas, router(self.seed), deaths).figures(self.begin_s)


@dataclass(frozen=True)
class Sized:
    """The fewest replicas that do, and what they did."""

    replicas: int
    figures: Figures


def size(question: Question, router: Router, *, one_dies: bool = False) -> Sized:
    """The fewest replicas of which the target is met; with one less it is not.

    Args:
        question: what is asked.
        router: chooses among them.
        one_dies: whether it has to be met while one of them is gone.
    Raises:
        ResourceError: no number of replicas does it, or more than are simulated.
    """
    _require_possible(question)
    failed = question.least_replicas - 1 + one_dies
    now, met = failed + 1, None
    while met is None or met.replicas - failed > 1:
        figures = question.figures(now, router, one_dies=one_dies)
        if question.met(figures):
            met = Sized(now, figures)
        else:
            failed = now
            if failed >= MOST_REPLICAS:
                raise ResourceError(_too_many(question, f"more than {MOST_REPLICAS}"))
        now = (failed + met.replicas) // 2 if met else min(failed + max(1, failed // 4), MOST_REPLICAS)
    return met


def _require_possible(question: Question) -> None:
    """
    Raises:
        ResourceError: one request alone takes longer, or the rate is beyond what is simulated.
    """
    if question.first_token_ms < question.least_ms:
        least = f"{question.least_ms:,.0f}" if question.least_ms >= 10 else f"{question.least_ms:.2g}"
        raise ResourceError(
            f"99 of 100 requests cannot have their first token in {question.first_token_ms:,.10g} ms: alone on a "
            f"replica that has nothing else to do and knows nothing of them they take {least} ms; allow more, or ask "
            "with shorter prompts or fewer pictures"
        )
    if question.least_replicas > MOST_REPLICAS:
        raise ResourceError(_too_many(question, f"at least {question.least_replicas}"))
    if question.count > _MOST_REQUESTS:
        raise ResourceError(_too_many(question, "too many to simulate"))


def _too_many(question: Question, how_many: str) -> str:
    rate = question.traffic.requests_per_second
    share = rate * min(MOST_REPLICAS / 2 / question.least_replicas, _MOST_REQUESTS / 2 / question.count)
    return (
        f"{rate:,.10g} requests a second in {question.first_token_ms:,.10g} ms need {how_many} replicas, and at most "
        f"{MOST_REPLICAS} are simulated; ask for a part of the rate, such as {share:.3g}, or allow more time"
    )
