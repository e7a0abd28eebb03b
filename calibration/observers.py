"""What was seen of an activation, in bounded memory whatever the number of samples, and the range chosen from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_trt.calibration.recipe import Observer
from vlm_trt.calibration.rounding import INT8_MAX, Floats

BINS = 4096
KEPT_ROWS = 128
_LEVELS = INT8_MAX + 1  # of a magnitude in 8 bits
_CANDIDATES = 512  # ranges that are compared


@dataclass
class Seen:
    """Magnitudes, ranges per channel and some rows of one activation. Two can be joined, in any order.

    The histogram's limit is a power of two and doubles when something larger comes, so that bins of any two fall on
    each other. The rows kept are those with the smallest of random keys: an even sample however it was come by.
    """

    channels: int
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    exponent: int = -24  # the histogram reaches to 2^exponent
    rows_seen: int = 0
    largest: Floats = field(init=False)  # magnitude per channel
    squares: NDArray[np.float64] = field(init=False)  # Σ x² per channel
    magnitudes: NDArray[np.float64] = field(init=False)  # Σ |x| per channel
    rows: Floats = field(init=False)  # [kept, channels]
    keys: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.largest = np.zeros(self.channels, np.float32)
        self.squares, self.magnitudes = np.zeros(self.channels), np.zeros(self.channels)
        self.rows = np.zeros((0, self.channels), np.float32)

    def add(self, values: Floats, random: np.random.Generator) -> None:
        """Takes note of finite values [rows, channels]."""
        magnitude = np.abs(values)
        own = magnitude.max(axis=0)
        self._reach(float(own.max()))
        indices = (magnitude.ravel() * (BINS / 2.0**self.exponent)).astype(np.int64)
        self.counts += np.bincount(np.minimum(indices, BINS - 1), minlength=BINS)
        self.largest = np.maximum(self.largest, own)
        self.squares += np.square(values, dtype=np.float64).sum(axis=0)
        self.magnitudes += magnitude.sum(axis=0, dtype=np.float64)
        self.rows_seen += len(values)
        self._keep(values, random.random(len(values)))

    def join(self, other: "Seen") -> None:
        """Takes over all that another has seen."""
        self._reach(2.0**other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)
        self.largest = np.maximum(self.largest, other.largest)
        self.squares += other.squares
        self.magnitudes += other.magnitudes
        self.rows_seen += other.rows_seen
        self._keep(other.rows, other.keys)

    @property
    def limit(self) -> float:
        """The largest magnitude."""
        return float(self.largest.max())

    def _reach(self, magnitude: float) -> None:
        more = 0
        while magnitude > 2.0 ** (self.exponent + more):
            more += 1
        self.counts = _coarser(self.counts, more)
        self.exponent += more

    def _keep(self, rows: Floats, keys: NDArray[np.float64]) -> None:
        every = np.concatenate([self.keys, keys])
        kept = np.argsort(every, kind="stable")[:KEPT_ROWS]
        self.rows, self.keys = np.concatenate([self.rows, rows])[kept], every[kept]


def _coarser(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """The same counts over a range 2^doublings times as wide."""
    for _ in range(min(doublings, BINS.bit_length())):
        counts = np.concatenate([counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)])
    return counts


def range_of(seen: Seen, observer: Observer, percentile: float) -> float:
    """The largest magnitude that 8 bits shall show; 1 where nothing but zero was seen."""
    if seen.limit == 0:
        return 1.0
    ranges: dict[Observer, Callable[[], float]] = {
        Observer.MAX: lambda: seen.limit,
        Observer.PERCENTILE: lambda: _percentile(seen, percentile),
        # A range that ends in an empty bin would lose all that it cuts off: it has no number for it.
        Observer.ENTROPY: lambda: _best(seen, _divergence, np.flatnonzero(seen.counts) + 1),
        Observer.MSE: lambda: _best(seen, _squared_error, np.arange(1, BINS + 1)),
    }
    return min(ranges[observer](), seen.limit)


def _percentile(seen: Seen, percentile: float) -> float:
    """The magnitude that so many in a hundred values do not exceed."""
    reached = np.cumsum(seen.counts) >= percentile / 100 * seen.counts.sum()
    return float((np.argmax(reached) + 1) * 2.0**seen.exponent / BINS)


def _best(seen: Seen, cost: Callable[[Any, int], float], ends: NDArray[np.int64]) -> float:
    """Of ranges that end there, in bins of the histogram, the one that costs least."""
    used = int(np.flatnonzero(seen.counts)[-1]) + 1
    fitting = ends[(ends >= min(_LEVELS, used)) & (ends <= used)]
    candidates = fitting[np.unique(np.linspace(0, len(fitting) - 1, _CANDIDATES).astype(int))]
    counts = seen.counts[:used].astype(np.float64)
    chosen = min(candidates, key=lambda bins: cost(counts, int(bins)))
    return float(chosen * 2.0**seen.exponent / BINS)


def _squared_error(counts: NDArray[np.float64], bins: int) -> float:
    """Σ (x − its integer's value)², every value in the middle of its bin; the unit is a bin."""
    centres = np.arange(len(counts)) + 0.5
    step = bins / INT8_MAX
    restored = np.clip(np.rint(centres / step), 0, INT8_MAX) * step
    return float((counts * np.square(centres - restored)).sum())


def _divergence(counts: NDArray[np.float64], bins: int) -> float:
    """Kullback–Leibler divergence of the values as 8 bits show them from the values as they are, cut at the range.

    Zeros cost nothing at any range, and half of the values behind a ReLU would outweigh all others: the first bin
    counts as the second.

    Source: Migacz, 8-bit inference with TensorRT, GTC 2017.
    """
    counts = counts.copy()
    counts[0] = counts[min(1, len(counts) - 1)]
    kept = counts[:bins].copy()
    kept[-1] += counts[bins:].sum()
    levels = np.minimum(np.arange(bins) * _LEVELS // bins, _LEVELS - 1)
    there = counts[:bins] > 0
    sums = np.bincount(levels, weights=counts[:bins], minlength=_LEVELS)
    filled = np.bincount(levels, weights=there.astype(np.float64), minlength=_LEVELS)
    shown = np.where(there, (sums / np.maximum(filled, 1))[levels], 0.0)
    both = (kept > 0) & (shown > 0)
    p, q = kept / kept.sum(), shown / max(shown.sum(), 1e-30)
    missing = p[(kept > 0) & (shown == 0)].sum()  # what the integers cannot show at all
    return float((p[both] * np.log(p[both] / q[both])).sum() + missing * 50)
