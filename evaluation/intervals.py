"""How far a mean score can be trusted: 95 % confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# 97.5 % quantile of the normal distribution: 95 % lie between −Z and Z.
Z = 1.959963984540054
RESAMPLES = 10_000
_SEED = 0
_BLOCK_DRAWS = 1 << 20  # bounds the memory of one block of resamples


@dataclass(frozen=True)
class Interval:
    """Where the true mean lies with 95 % confidence."""

    low: float
    high: float
    method: str  # "wilson", "bootstrap", or "unknown" for a single example that is neither right nor wrong


def interval(scores: Sequence[float]) -> Interval:
    """The interval of the mean of scores 0…1: Wilson's where all are 0 or 1, else a bootstrap over examples."""
    if all(score in (0, 1) for score in scores):
        return wilson(round(sum(scores)), len(scores))
    return bootstrap(scores, low=0.0, high=1.0)


def wilson(right: int, n: int) -> Interval:
    """The interval of a share `right / n`.

    (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n)

    Source: Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    """
    share, spread = right / n, Z**2 / n
    centre = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return Interval(min(share, max(0.0, low)), max(share, min(1.0, high)), "wilson")  # rounding leaves the share inside


def bootstrap(values: Sequence[float], low: float, high: float) -> Interval:
    """The interval of a mean: 2.5 % and 97.5 % quantiles of the means of resamples, drawn with a fixed seed.

    Of the differences of two runs over the same examples it is the paired bootstrap. It knows nothing but the
    examples: where all are equal it has no width.

    Args:
        values: one per example.
        low: least possible value; the interval of a single example reaches from there …
        high: … to the largest.
    Source: Efron, Bootstrap methods: another look at the jackknife, 1979; percentile method, 10,000 resamples.
    """
    n = len(values)
    if n == 1:
        return Interval(low, high, "unknown")
    array = np.array(values, dtype=np.float64)
    random = np.random.Generator(np.random.Philox(_SEED))
    block = max(1, _BLOCK_DRAWS // n)
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    means = np.concatenate([array[random.integers(n, size=(size, n))].mean(axis=1) for size in sizes])
    least, most = np.quantile(means, (0.025, 0.975))
    return Interval(float(least), float(most), "bootstrap")
