"""Rows of logits and settings that a sampler's graph is held to: ordinary ones, and those that tell a wrong one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.signature import candidate_count
from vlm_trt.runtime.sampler import Row, Sampling

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_NO_IDS: Ints = np.empty(0, dtype=np.int64)
_GREEDY = Sampling(greedy=True)
# Of settings that reach far, and of the others.
_DRAWS, _FEW_DRAWS = (0.0, 0.1, 0.5, 0.9, 0.999), (0.1, 0.9)


@dataclass(frozen=True)
class Case:
    """One row."""

    name: str
    logits: Floats  # [vocab]
    row: Row
    decided: bool | None  # whether the candidates must be enough, or must not be; None: either


def cases(vocab: int, most_seen: int) -> Iterator[Case]:
    """Every case, always the same ones.

    Args:
        vocab: of the model.
        most_seen: ids that a sequence may have seen.
    """
    random = np.random.default_rng(0)
    few = vocab <= candidate_count(vocab)  # then candidates are all there is
    shapes = _shapes(vocab, random)
    for shape, logits in shapes.items():
        for name, sampling in _settings(vocab).items():
            for draw in _draws(sampling):
                row = Row(sampling, draw, _NO_IDS, _NO_IDS)
                yield Case(f"{shape}, {name}, draw {draw:g}", logits, row, _decided(shape, sampling, vocab, few=few))
    yield from _edits(shapes, vocab, most_seen, random)
    for name, at, value in (
        ("NaN first", [0], np.nan),
        ("NaN last", [-1], np.nan),
        ("+inf", [vocab // 2], np.inf),
        ("-inf", [vocab // 3], -np.inf),
        ("all NaN", slice(None), np.nan),
    ):
        broken = shapes["peaked"].copy()
        broken[at] = value
        yield Case(name, broken, Row(_GREEDY, 0.0, _NO_IDS, _NO_IDS), decided=False)


def _shapes(vocab: int, random: np.random.Generator) -> dict[str, Floats]:
    ordinary = (3 * random.standard_normal(vocab)).astype(np.float32)
    peaked, huge = ordinary.copy(), ordinary.copy()
    # Far above the others, each by less than the one before.
    peaked[random.permutation(vocab)[:8]] = np.linspace(30, 24, min(8, vocab))
    huge[vocab // 2] = 1e4
    return {
        "ordinary": ordinary,
        "peaked": peaked,
        "one huge": huge,
        "flat": np.zeros(vocab, dtype=np.float32),
        "ties": (np.round(2 * peaked.clip(max=25)) / 2).astype(np.float32),
        "negative": ordinary - 100,
    }


def _settings(vocab: int) -> dict[str, Sampling]:
    count = candidate_count(vocab)
    return {
        "greedy": _GREEDY,
        "temperature 1": Sampling(),
        "temperature 0.5": Sampling(temperature=0.5),
        "temperature 2": Sampling(temperature=2.0),
        "top-k 1": Sampling(top_k=1),
        "top-k 20": Sampling(top_k=20),
        "top-k beyond the candidates": Sampling(top_k=count + 1),
        "top-k beyond the vocabulary": Sampling(top_k=vocab + 1),
        "top-p 0.3": Sampling(top_p=0.3),
        "top-p 0.95": Sampling(top_p=0.95),
        "top-k 20, top-p 0.5, temperature 1.5": Sampling(temperature=1.5, top_k=20, top_p=0.5),
    }


def _draws(sampling: Sampling) -> tuple[float, ...]:
    if sampling.greedy:
        return (0.0,)
    return _DRAWS if sampling.temperature == 1 and sampling.top_k == 0 else _FEW_DRAWS


def _decided(shape: str, sampling: Sampling, vocab: int, *, few: bool) -> bool | None:
    """What is known beforehand: nearly all of a peaked row's mass lies on eight tokens, and of a flat one on none."""
    if few:
        return True
    beyond = candidate_count(vocab) < sampling.top_k < vocab
    if shape == "flat" or (beyond and not sampling.greedy):
        return False
    return True if shape in ("peaked", "one huge") and sampling.temperature < 2 else None


def _edits(shapes: dict[str, Floats], vocab: int, most_seen: int, random: np.random.Generator) -> Iterator[Case]:
    """Penalties on few and many ids, of either sign, and suppressed ids, of those that would be chosen."""
    for shape in ("ordinary", "peaked", "negative"):
        logits = shapes[shape]
        likeliest = np.argsort(-logits, kind="stable")[: min(5, vocab - 1)]
        several = np.unique(np.concatenate((likeliest, random.integers(0, vocab, 40))))
        many = random.permutation(vocab)[: min(most_seen, vocab)]
        for penalty in (1.3, 0.5):
            for greedy in (True, False):
                sampling = Sampling(greedy=greedy, repetition_penalty=penalty, top_p=1.0 if greedy else 0.5)
                row = Row(sampling, 0.4, _NO_IDS, _NO_IDS)
                what = f"{shape}, {'greedy' if greedy else 'top-p 0.5'}, penalty {penalty} on"
                for name, seen in (("one id", likeliest[:1]), ("several ids", several), ("all it may", many)):
                    yield Case(f"{what} {name}", logits, replace(row, seen=seen), None)
        for name, ids in (("the likeliest", likeliest[:1]), ("five", likeliest)):
            row = Row(_GREEDY, 0.0, _NO_IDS, np.sort(ids))
            yield Case(f"{shape}, {name} suppressed", logits, row, None)
            both = Row(Sampling(repetition_penalty=1.3, top_p=0.5), 0.7, several, np.sort(ids))
            yield Case(f"{shape}, {name} suppressed and penalized", logits, both, None)
    first = shapes["flat"].copy()
    first[0] = 50.0
    row = Row(Sampling(greedy=True, repetition_penalty=1000.0), 0.0, np.zeros(1, dtype=np.int64), _NO_IDS)
    yield Case("id 0 penalized", first, row, None)
    yield Case("id 0 suppressed", first, Row(_GREEDY, 0.0, _NO_IDS, np.zeros(1, dtype=np.int64)), None)
