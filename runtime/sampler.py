"""How a sequence's tokens are chosen: greedy, or sampled from the distribution that Hugging Face's warpers make.

The graph `sampler.onnx` computes it where the logits lie (`runtime/sampling_run.py`); what its candidates do not decide
is computed here, over the whole vocabulary, with the same draw and in the same order.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.signature import candidate_count

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
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


@dataclass(frozen=True)
class Row:
    """How the next token of one row of logits is chosen."""

    sampling: Sampling
    draw: float  # uniform in [0, 1); of a greedy row it does not count
    seen: Ints  # ids that the repetition penalty is for, each once; none where there is no penalty
    suppressed: Ints  # ids that are never chosen, each once


@dataclass(frozen=True)
class Drawn:
    """What was chosen from one row of logits, and what else was likely."""

    token: int
    logprob: float  # of the logits as they came, before penalties and temperature
    candidates: Ints  # the likeliest after penalties, the first most of all
    candidate_logprobs: Floats  # of each, as `logprob`
    finite: bool  # whether all logits of the row are
    decided: bool  # whether the candidates were enough to tell the token


class Sampler:
    """Chooses the tokens of one sequence: its random numbers, and the ids that it has seen.

    The same seed chooses the same ids on every platform.
    """

    def __init__(self, sampling: Sampling, suppressed: Iterable[int] = ()) -> None:
        """
        Args:
            sampling: how to choose.
            suppressed: ids that are never chosen.
        """
        self._sampling = sampling
        self._suppressed = np.array(sorted(set(suppressed)), dtype=np.int64)
        self._random = np.random.Generator(np.random.Philox(sampling.seed))
        self._seen: set[int] = set()
        self._seen_ids = np.empty(64, dtype=np.int64)  # the first len(_seen) of them

    def observe(self, ids: Iterable[int]) -> None:
        """Counts ids as seen, for the repetition penalty."""
        if self._sampling.repetition_penalty == 1:
            return
        for one in ids:
            if one not in self._seen:
                if len(self._seen) == len(self._seen_ids):
                    self._seen_ids = np.resize(self._seen_ids, 2 * len(self._seen))
                self._seen_ids[len(self._seen)] = one
                self._seen.add(one)

    def row(self) -> Row:
        """How the next token is chosen. Each call draws anew: one call per token."""
        draw = 0.0 if self._sampling.greedy else float(self._random.random())
        return self._row(draw)

    def next_id(self, logits: Floats, allowed: NDArray[np.bool_] | None = None) -> int:
        """The id chosen from logits [vocab]; it counts as seen from then on.

        Args:
            logits: of the next token.
            allowed: which ids may be chosen [vocab]; None: all.
        """
        chosen = choose(logits, self.row(), allowed)
        self.observe((chosen,))
        return chosen

    def distribution(self, logits: Floats) -> NDArray[np.float64]:
        """The probabilities [vocab] that `next_id` draws from; greedy puts all on one id."""
        row = self._row(0.0)
        spread = np.zeros(logits.shape[0], dtype=np.float64)
        if self._sampling.greedy:
            spread[choose(logits, row)] = 1
        else:
            ids, weights = _possible(_edited(logits, row, None), self._sampling)
            spread[ids] = weights / weights.sum()
        return spread

    def _row(self, draw: float) -> Row:
        return Row(self._sampling, draw, self._seen_ids[: len(self._seen)].copy(), self._suppressed)


def choose(logits: Floats, row: Row, allowed: NDArray[np.bool_] | None = None) -> int:
    """The id that the row's settings and draw choose from logits [vocab].

    Args:
        logits: of one row.
        row: settings and draw.
        allowed: which ids may be chosen [vocab], at least one of them; None: all.
    """
    if row.sampling.greedy:
        return int(_edited(logits, row, allowed).argmax())
    ids, weights = order_of(logits, row, allowed)
    mass = np.cumsum(weights)
    return int(ids[min(int(np.searchsorted(mass, row.draw * mass[-1], side="right")), len(ids) - 1)])


def order_of(logits: Floats, row: Row, allowed: NDArray[np.bool_] | None = None) -> tuple[Ints, NDArray[np.floating]]:
    """Ids that may be drawn and their weights, in the order in which a draw passes them: the arguments of `choose`."""
    possible = _possible(_edited(logits, row, allowed), row.sampling)
    return _ordered(*possible, candidate_count(len(logits)))


def drawn(logits: Floats, row: Row, allowed: NDArray[np.bool_] | None = None) -> Drawn:
    """What the sampler's graph gives of a row, from the whole vocabulary: the arguments are those of `choose`."""
    token, count = choose(logits, row, allowed), candidate_count(len(logits))
    scaled = _scaled(_edited(logits, row, allowed), row.sampling)
    candidates = _ordered(np.arange(len(logits)), scaled, count)[0][:count]
    values = logits.astype(np.float64)
    logprobs = values - values.max() - np.log(np.exp(values - values.max()).sum())
    return Drawn(
        token=token,
        logprob=float(logprobs[token]),
        candidates=candidates,
        candidate_logprobs=logprobs[candidates].astype(np.float32),
        finite=bool(np.isfinite(logits).all()),
        decided=True,
    )


def _edited(logits: Floats, row: Row, allowed: NDArray[np.bool_] | None) -> Floats:
    """Logits with the penalty, and −inf where an id may not be chosen."""
    if allowed is None and not (row.suppressed.size or row.seen.size):
        return logits
    changed = logits.copy()
    if row.seen.size:
        seen, penalty = changed[row.seen], np.float32(row.sampling.repetition_penalty)
        changed[row.seen] = np.where(seen < 0, seen * penalty, seen / penalty)
    changed[row.suppressed] = -np.inf
    if allowed is not None:
        changed[~allowed] = -np.inf
    return changed


def _possible(logits: Floats, sampling: Sampling) -> tuple[Ints, NDArray[np.float64]]:
    """Ids that may be chosen, ascending, and their weights; without sorting the vocabulary."""
    scaled = _scaled(logits, sampling)
    if 0 < sampling.top_k < scaled.shape[0]:
        smallest = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        ids = np.flatnonzero(scaled >= smallest)  # ties with the k-th stay
    else:
        ids = np.flatnonzero(scaled > -np.inf)
    values = scaled[ids]
    weights = np.exp(values - values.max()).astype(np.float64)
    return _nucleus(ids, weights, sampling.top_p) if sampling.top_p < 1 else (ids, weights)


def _scaled(logits: Floats, sampling: Sampling) -> Floats:
    """Logits over the temperature; where nothing is drawn, as they are."""
    factor = np.float32(1) if sampling.greedy else np.float32(1) / np.float32(sampling.temperature)
    return logits * factor


def _nucleus(ids: Ints, weights: NDArray[np.float64], top_p: float) -> tuple[Ints, NDArray[np.float64]]:
    """The likeliest ids, as long as those before them hold less than top_p of the mass.

    A token of the nucleus and all below it hold more than 1 − top_p, so it alone holds more than its share of that:
    everything smaller is dropped before sorting.
    """
    total = weights.sum()
    share = min(total * (1 - top_p) / len(weights), weights.max())  # rounded, it may be more than any has
    possible = np.flatnonzero(weights >= share)
    order = possible[np.argsort(-weights[possible], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]
    kept = np.sort(order[: max(1, int(np.count_nonzero(before < top_p * total)))])
    return ids[kept], weights[kept]


def _ordered(ids: Ints, weights: NDArray[np.floating], first: int) -> tuple[Ints, NDArray[np.floating]]:
    """Ascending ids and their weights in the order of the draw: that many of the likeliest, then the rest as it was."""
    least = np.partition(weights, -first)[-first] if first < len(weights) else weights.min()
    head = np.flatnonzero(weights >= least)
    head = head[np.argsort(-weights[head], kind="stable")][:first]
    rest = np.ones(len(ids), dtype=bool)
    rest[head] = False
    order = np.concatenate((head, np.flatnonzero(rest)))
    return ids[order], weights[order]
