"""Logits → the next token id: greedy, or sampled from the distribution that Hugging Face's warpers make."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.errors import UsageError

Floats = NDArray[np.float32]
# Logits divided by less could overflow fp32, and with it the whole distribution.
_LEAST = 0.001


@dataclass(frozen=True)
class Range:
    """What a value may be."""

    kind: type  # int, or float, which takes both
    least: float
    most: float
    words: str

    def holds(self, value: object) -> bool:
        numbers = (int, np.integer) if self.kind is int else (int, float, np.integer, np.floating)
        if not isinstance(value, numbers) or isinstance(value, bool):
            return False
        return self.least <= (value.item() if isinstance(value, np.generic) else value) <= self.most


# One place for command line, Python API and checkpoint defaults.
RANGES = {
    "max_new_tokens": Range(int, 1, 2**31 - 1, "1 or more, and below 2^31"),
    "temperature": Range(float, _LEAST, sys.float_info.max, f"at least {_LEAST}, or 0 for greedy"),
    "top_k": Range(int, 0, 2**31 - 1, "0 (all tokens) or more, and below 2^31"),
    "top_p": Range(float, sys.float_info.min, 1, "above 0 and at most 1"),
    "repetition_penalty": Range(float, _LEAST, 1 / _LEAST, f"{_LEAST}…{1 / _LEAST:.0f}"),
    "seed": Range(int, 0, 2**64 - 1, "0 or more, and below 2^64"),
}


def require_in_range(name: str, value: object) -> None:
    """
    Raises:
        UsageError: it is no such number.
    """
    allowed = RANGES[name]
    if not allowed.holds(value):
        kind = "a whole number, " if allowed.kind is int and not isinstance(value, int) else ""
        raise UsageError(f"{name} is {_shown(value)}; it must be {kind}{allowed.words}")


def _shown(value: object) -> str:
    """In a sentence: nobody reads a number of a thousand digits, and Python refuses to write longer ones."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of more than 20 digits"
    return repr(value)


@dataclass(frozen=True)
class Sampling:
    """How to choose; repetition penalty, temperature, top-k and top-p apply in that order."""

    greedy: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: a value outside its range.
        """
        for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed"):
            require_in_range(name, getattr(self, name))


class Sampler:
    """Chooses the tokens of one sequence. The same seed chooses the same ids on every platform."""

    def __init__(self, sampling: Sampling, suppressed: Iterable[int] = ()) -> None:
        """
        Args:
            sampling: how to choose.
            suppressed: ids that are never chosen.
        """
        self._sampling = sampling
        self._suppressed = np.array(sorted(suppressed), dtype=np.int64)
        self._random = np.random.Generator(np.random.Philox(sampling.seed))
        self._seen: set[int] = set()
        self._seen_ids = np.empty(0, dtype=np.int64)

    def observe(self, ids: Iterable[int]) -> None:
        """Counts ids as seen, for the repetition penalty."""
        if self._sampling.repetition_penalty != 1:
            self._seen.update(ids)
            self._seen_ids = np.fromiter(self._seen, dtype=np.int64, count=len(self._seen))

    def next_id(self, logits: Floats) -> int:
        """The id chosen from logits [vocab]; it counts as seen from then on."""
        penalized = self._penalized(logits)
        if self._sampling.greedy:
            chosen = int(penalized.argmax())
        else:
            ids, probabilities = self._candidates(penalized)
            at = np.searchsorted(np.cumsum(probabilities), self._random.random() * probabilities.sum(), side="right")
            chosen = int(ids[min(int(at), len(ids) - 1)])
        self.observe((chosen,))
        return chosen

    def distribution(self, logits: Floats) -> NDArray[np.float64]:
        """The probabilities [vocab] that `next_id` draws from; greedy puts all on one id."""
        penalized = self._penalized(logits)
        spread = np.zeros(logits.shape[0], dtype=np.float64)
        if self._sampling.greedy:
            spread[penalized.argmax()] = 1
        else:
            ids, probabilities = self._candidates(penalized)
            spread[ids] = probabilities / probabilities.sum()
        return spread

    def _penalized(self, logits: Floats) -> Floats:
        penalty = self._sampling.repetition_penalty
        if not (self._suppressed.size or self._seen_ids.size):
            return logits
        changed = logits.copy()
        if self._seen_ids.size:
            seen = changed[self._seen_ids]
            changed[self._seen_ids] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
        changed[self._suppressed] = -np.inf
        return changed

    def _candidates(self, logits: Floats) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Ids that may be chosen, ascending, and their weights; without sorting the vocabulary."""
        scaled = logits / np.float32(self._sampling.temperature)
        top_k = self._sampling.top_k
        if 0 < top_k < scaled.shape[0]:
            smallest = np.partition(scaled, -top_k)[-top_k]
            ids = np.flatnonzero(scaled >= smallest)  # ties with the k-th stay
        else:
            ids = np.flatnonzero(scaled > -np.inf)
        values = scaled[ids]
        weights = np.exp(values - values.max()).astype(np.float64)
        return self._nucleus(ids, weights) if self._sampling.top_p < 1 else (ids, weights)

    def _nucleus(
        self, ids: NDArray[np.intp], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The likeliest ids, as long as those before them hold less than top_p of the mass.

        A token of the nucleus and all below it hold more than 1 − top_p, so it alone holds more than its share of
        that: everything smaller is dropped before sorting.
        """
        top_p, total = self._sampling.top_p, weights.sum()
        possible = np.flatnonzero(weights > total * (1 - top_p) / len(weights))
        order = possible[np.argsort(-weights[possible], kind="stable")]
        before = np.cumsum(weights[order]) - weights[order]
        kept = np.sort(order[: max(1, int(np.count_nonzero(before < top_p * total)))])
        return ids[kept], weights[kept]
