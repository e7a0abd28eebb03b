"""Two bundles, precisions or backends beside each other: runs A B A B, and each stage's ratio with its interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    mine_ms: float  # medians
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
    return Comparison(label, workload, len(pairs), same_tokens(*pairs[0]), found)


def same_tokens(mine: Iteration, other: Iteration) -> float:
    """Share of the tokens that agree, position by position."""
    pairs = [
        (a, b)
        for one, two in zip(mine.requests, other.requests, strict=True)
        for a, b in zip(one.ids, two.ids, strict=False)
    ]
    longest = sum(max(len(one.ids), len(two.ids)) for one, two in zip(mine.requests, other.requests, strict=True))
    return sum(a == b for a, b in pairs) / longest


def require_same_work(mine: Iteration, other: Iteration, least: float, label: str) -> None:
    """
    Raises:
        UsageError: the answers are others, so the times are of different work.
    """
    share = same_tokens(mine, other)
    if share < least:
        raise UsageError(
            f"only {share:.0%} of the tokens of {label} are those of this bundle, so a comparison of times would be of "
            "different work; compare the same model, or allow it with --least-agreement"
        )


def _stages(pairs: Pairs) -> Mapping[str, tuple[list[float], list[float]]]:
    """Milliseconds of each stage per iteration, of both, where both have it; the whole request last."""
    sides = [[_totals(iteration) for iteration in side] for side in zip(*pairs, strict=True)]
    names = [name for name in sides[0][0] if all(name in one for side in sides for one in side)]
    return {name: ([one[name] for one in sides[0]], [one[name] for one in sides[1]]) for name in names}


def _totals(iteration: Iteration) -> dict[str, float]:
    found: dict[str, float] = {}
    for span in iteration.spans:
        found[span.stage] = found.get(span.stage, 0.0) + span.seconds * 1000
    first = max(one.first_token_ms for one in iteration.requests)
    return found | {"time_to_first_token": first, "request_latency": iteration.seconds * 1000}


def _ratio(stage: str, mine: Sequence[float], other: Sequence[float]) -> Ratio:
    ratios = np.array([b / a for a, b in zip(mine, other, strict=True)])
    draws = np.random.default_rng(_SEED).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return Ratio(stage, median(mine), median(other), float(np.median(ratios)), float(low), float(high))
