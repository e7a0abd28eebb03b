"""What the work of one replica takes, in milliseconds: given, or read from a profile that `vlm-trt profile` wrote."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from vlm_trt.bundle.json_values import count_of, value_of

# Positions that a step prefills at most, as `runtime/scheduler.py` has it.
CHUNK_TOKENS = 512

_SCHEMA = 2  # of profiles, as `profiling/profile_file.py` has it
_LONGEST_MS = 1e9


@dataclass(frozen=True)
class Curve:
    """Milliseconds by a count: straight between the points that are known, and on beyond the last two of them."""

    points: tuple[tuple[float, float], ...]  # count, milliseconds; ascending

    def at(self, count: float) -> float:
        """Milliseconds; below the first point as many as there."""
        known = self.points
        if count <= known[0][0] or len(known) == 1:
            return known[0][1]
        after = min(bisect_right(known, count, key=lambda point: point[0]), len(known) - 1)
        (left, low), (right, high) = known[after - 1], known[after]
        return low + (high - low) * (count - left) / (right - left)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Of one replica. All of it is done in turn: the same device, or the same cores, does it."""

    request_ms: float = 0.0  # of any request, before its prompt: taken in and tokenized
    picture_ms: float = 0.0  # of one picture: prepared and encoded
    chunk_ms: Curve  # of a chunk of a prompt, by its tokens
    step_ms: Curve  # of a decode step, by the sequences that run together

    def alone_ms(self, prompt_tokens: int, pictures: int) -> float:
        """Milliseconds until the first token of a request that waits for nobody and of which nothing is known."""
        chunks, rest = divmod(prompt_tokens, CHUNK_TOKENS)
        prefill = chunks * self.chunk_ms.at(CHUNK_TOKENS) + (self.chunk_ms.at(rest) if rest else 0.0)
        return self.request_ms + pictures * self.picture_ms + prefill


@dataclass(frozen=True)
class Measured:
    """What a profile says of a replica."""

    costs: Costs
    pictures: bool  # whether there were any
    most_sequences: int  # that were decoded together
    family: str
    backend: str
    precision: str
    machine: str  # GPU or processor


def of_profile(document: Any) -> Measured:
    """The costs that a profile measured.

    A prompt's chunks take a fixed time and one for each token, by least squares over the points; with prompts of one
    length alone, a time for each token. A decode step of N sequences is the median time between tokens of the points
    with a batch of N, so that sampling and everything else between two steps is part of it.

    Args:
        document: of `vlm-trt profile`, as JSON values.
    Raises:
        ValueError: it is no such document, or measured too little; says what.
    """
    if value_of(document, "schema", int) != _SCHEMA:
        raise ValueError(f"its schema is {document['schema']}, this version reads {_SCHEMA}")
    setup, environment = value_of(document, "setup", dict), value_of(document, "environment", dict)
    points = [_point(one) for one in value_of(document, "points", list)]
    if not points:
        raise ValueError("points are none")
    seen = [one for one in points if one.pictures]
    steps: dict[int, list[float]] = {}
    for one in points:
        if one.step_ms is not None:
            steps.setdefault(one.batch, []).append(one.step_ms)
    if not steps:
        raise ValueError("no answer has two tokens, so that no decode step was measured")
    costs = Costs(
        request_ms=fmean(one.request_ms for one in points),
        picture_ms=fmean(one.vision_ms / one.pictures for one in seen) if seen else 0.0,
        chunk_ms=_chunks(points),
        step_ms=Curve(tuple(sorted((float(batch), fmean(found)) for batch, found in steps.items()))),
    )
    machine = environment.get("gpu") or environment.get("processor") or "another machine"
    family, backend, precision = (value_of(setup, name, str) for name in ("family", "backend", "precision"))
    return Measured(costs, bool(seen), max(steps), family, backend, precision, str(machine))


@dataclass(frozen=True)
class _Point:
    """One point of a profile; milliseconds of one request but for the step."""

    batch: int
    pictures: int
    prompt_tokens: int
    request_ms: float
    vision_ms: float
    prefill_ms: float
    step_ms: float | None  # None: answers had one token


def _point(point: Any) -> _Point:
    workload, stages, metrics = (value_of(point, name, dict) for name in ("workload", "stages", "metrics"))
    batch, pictures = count_of(workload, "batch", 1), count_of(workload, "images", 0)
    answered = batch * count_of(point, "iterations", 1)

    def of_request(*names: str) -> float:
        """Milliseconds of all runs of these stages, for each request."""
        return sum(_total_ms(stages[name]) for name in names if name in stages) / answered

    between = value_of(value_of(point, "samples", dict), "inter_token_ms", list)
    return _Point(
        batch=batch,
        pictures=pictures,
        prompt_tokens=round(_time(value_of(metrics, "input_sequence_length", dict), "p50")),
        request_ms=of_request("tokenization"),
        vision_ms=of_request("preprocess", "vision_encoder", "resampler"),
        prefill_ms=_total_ms(value_of(stages, "prefill", dict)) / answered,
        step_ms=median(_time({"inter_token_ms": one}, "inter_token_ms") for one in between) if between else None,
    )


def _chunks(points: Sequence[_Point]) -> Curve:
    """Milliseconds of a chunk by its tokens: a fixed part and one for each of them, neither negative."""
    counts = np.array([(-(-one.prompt_tokens // CHUNK_TOKENS), one.prompt_tokens) for one in points], dtype=np.float64)
    taken = np.array([one.prefill_ms for one in points])
    if len({one.prompt_tokens for one in points}) > 1:
        fixed, each = (float(one) for one in np.linalg.lstsq(counts, taken, rcond=None)[0])
    else:
        fixed, each = 0.0, float(taken.sum() / counts[:, 1].sum())
    if fixed < 0:
        fixed, each = 0.0, float((counts[:, 1] @ taken) / (counts[:, 1] @ counts[:, 1]))
    if each < 0:
        fixed, each = float((counts[:, 0] @ taken) / (counts[:, 0] @ counts[:, 0])), 0.0
    return Curve(((0.0, fixed), (float(CHUNK_TOKENS), fixed + each * CHUNK_TOKENS)))


def _total_ms(summary: Any) -> float:
    return _time(summary, "avg") * count_of(summary, "count", 1)


def _time(values: Any, name: str) -> float:
    found = value_of(values, name, (int, float))
    if not 0 <= found < _LONGEST_MS:  # NaN is not
        raise ValueError(f"{name} is {found}")
    return float(found)
