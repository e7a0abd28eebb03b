"""Two bundles, precisions or backends beside each other: runs A B A B, and each stage's ratio with its interval.

A stage's time is that of one run, as everywhere: of one decode step, not of all of an answer.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from statistics import median

import numpy as np

from vlm_trt.bundle.errors import UsageError
from vlm_trt.profiling.measure import Iteration
from vlm_trt.profiling.workload import Workload

_RESAMPLES, _SEED = 2000, 0

Once = Callable[[], Iteration]
Pairs = Sequence[tuple[Iteration, Iteration]]


@dataclass(frozen=True)
class Ratio:
    """How many times as long the other one takes: median of the paired ratios, and 95 % of its bootstrap."""

    stage: str
    mine_ms: float  # medians, of one run of the stage
    other_ms: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    other: str
    workload: Workload
    pairs: int
    same_tokens: float  # share of all tokens that agree
    parted_at: int | None  # the first token, counted from 1, that some request has other than its counterpart
    ratios: tuple[Ratio, ...]


def paired(mine: Once, other: Once, pairs: int, warmup: int = 1, progress: Callable[[], None] = lambda: None) -> Pairs:
    """Iterations of both in turn, the first few not counted."""
    for _ in range(warmup):
        mine(), other()
    done = []
    for _ in range(pairs):
        done.append((mine(), other()))
        progress()
    return done


def compared(label: str, workload: Workload, pairs: Pairs) -> Comparison:
    """What the pairs say.

    Args:
        label: of the other side.
        workload: of both.
        pairs: iterations of mine and of the other.
    """
    stages = _stages(pairs)
    found = tuple(_ratio(stage, mine, other) for stage, (mine, other) in stages.items())
    return Comparison(label, workload, len(pairs), same_tokens(*pairs[0]), parted_at(*pairs[0]), found)


def same_tokens(mine: Iteration, other: Iteration) -> float:
    """Share of the tokens that agree, position by position."""
    pairs = [
        (a, b)
        for one, two in zip(mine.requests, other.requests, strict=True)
        for a, b in zip(one.ids, two.ids, strict=False)
    ]
    longest = sum(max(len(one.ids), len(two.ids)) for one, two in zip(mine.requests, other.requests, strict=True))
    return sum(a == b for a, b in pairs) / longest


def parted_at(mine: Iteration, other: Iteration) -> int | None:
    """Number of the first token that differs, of all requests; None where all answers are the same."""
    found = [
        next((at for at, (a, b) in enumerate(zip_longest(one.ids, two.ids), start=1) if a != b), None)
        for one, two in zip(mine.requests, other.requests, strict=True)
    ]
    return min((at for at in found if at is not None), default=None)


def what_it_means(same_tokens: float, parted_at: int | None) -> str:
    """The share of same tokens as sentences: what it says, what it does not, and what to do about it."""
    share = f"{same_tokens:.1%} of the tokens are the same"
    if parted_at is None:
        return f"{share}: both answer alike"
    return (
        f"{share}: the answers part at token {parted_at}. From there on each goes on with its own text, so this says "
        "how early a near tie went the other way and not how many tokens are wrong; the pictures here are noise. "
        "The times compare all the same, since both compute as many tokens. Whether the other one answers as well: "
        "vlm-trt evaluate BUNDLE --data DATA --baseline THE-OTHER"
    )


def require_same_work(mine: Iteration, other: Iteration, least: float, label: str) -> None:
    """
    Raises:
        UsageError: the answers are others, so the times are of different work.
    """
    share = same_tokens(mine, other)
    if share < least:
        raise UsageError(
            f"only {share:.0%} of the tokens of {label} are those of this bundle (the answers part at token "
            f"{parted_at(mine, other)}), so this may be another model, and a comparison of times of different work; "
            "compare the same model, look at the answers with vlm-trt evaluate --baseline, or compare the times all "
            "the same with --least-agreement 0"
        )


def _stages(pairs: Pairs) -> Mapping[str, tuple[list[float], list[float]]]:
    """Milliseconds of one run of each stage per iteration, of both, where both have it; the whole request last."""
    runs = Counter(span.stage for span in pairs[0][0].spans)
    sides = [[_per_run(iteration, runs) for iteration in side] for side in zip(*pairs, strict=True)]
    names = [name for name in sides[0][0] if all(name in one for side in sides for one in side)]
    return {name: ([one[name] for one in sides[0]], [one[name] for one in sides[1]]) for name in names}


def _per_run(iteration: Iteration, runs: Mapping[str, int]) -> dict[str, float]:
    """
    Args:
        runs: of each stage on this side; the other one may do the same work in fewer or more.
    """
    totals: dict[str, float] = {}
    for span in iteration.spans:
        totals[span.stage] = totals.get(span.stage, 0.0) + span.seconds * 1000
    found = {stage: total / runs[stage] for stage, total in totals.items() if stage in runs}
    first = max(one.first_token_ms for one in iteration.requests)
    return found | {"time_to_first_token": first, "request_latency": iteration.seconds * 1000}


def _ratio(stage: str, mine: Sequence[float], other: Sequence[float]) -> Ratio:
    ratios = np.array([b / a for a, b in zip(mine, other, strict=True)])
    draws = np.random.default_rng(_SEED).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(stage, median(mine), median(other), float(np.median(ratios)), float(low), float(high))
