"""The sampler's graph, or the engine built from it, against what the host computes from the same rows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.runtime.backend import bind_host
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.sampler import Row, order_of
from vlm_trt.runtime.sampler import drawn as on_host
from vlm_trt.runtime.sampling_run import Drawn, SamplerRun
from vlm_trt.verification.figures import Figures, compare, failure, tolerance_of
from vlm_trt.verification.outcome import Outcome
from vlm_trt.verification.sampler_cases import Case, Floats, cases

# A graph adds a vocabulary up in fp32. Of 151,936 equal logits its sum is off by 1e-4; a draw, and the share of a
# nucleus, that lie so close to the edge of a token may fall to either side.
_EDGE = 5e-4
# Probabilities are compared down to here: those below are zero in fp32.
_LEAST_LOGPROB = -80.0
_SHOWN = 5  # failures that are spelled out


def check_sampler(engine: Engine, label: str) -> Outcome:
    """What `check_run` finds of an engine's sampler."""
    limits, vocab = engine.limits, engine.model.decoder.vocab_size
    run = SamplerRun(engine.sessions[Component.SAMPLER], engine.backend, vocab, limits.max_batch)
    return check_run(run, vocab, limits, label)


def check_run(run: SamplerRun, vocab: int, limits: Limits, label: str) -> Outcome:
    """Every case, in as many rows at once as there may be, one kind of setting beside another.

    Args:
        run: the sampler.
        vocab: of its logits.
        limits: what it has to take.
        label: follows the name of each case in what is said.
    """
    figures, failures, undecided, total = list[Figures](), list[str](), 0, 0
    try:
        for batch in _batches(vocab, limits):
            for case, found in zip(batch, _run(run, batch), strict=True):
                name, total, undecided = f"{case.name}{label}", total + 1, undecided + (not found.decided)
                failures += [f"sampler, {name}: {one}" for one in _wrong(case, found)]
                if np.isfinite(case.logits).all():
                    figures.append(_compared(case, found, name))
    except VlmTrtError as error:
        failures.append(f"sampler{label}: it does not run: {error}")
    judged = (failure(one, tolerance_of(Precision.FP32)) for one in figures)
    failures += [sentence for sentence in judged if sentence is not None]
    note = f"the sampler decides {total - undecided} of {total} rows, and leaves the others to the host{label}"
    more = len(failures) - _SHOWN
    shown = (*failures[:_SHOWN], *([f"sampler{label}: {more} more rows are wrong"] if more > 0 else []))
    return Outcome(tuple(figures), shown, (note,))


def _batches(vocab: int, limits: Limits) -> Iterator[list[Case]]:
    """One row alone, and then as many at once as there may be."""
    every = cases(vocab, limits.max_seq_tokens)
    yield list(islice(every, 1))
    while batch := list(islice(every, limits.max_batch)):
        yield batch


def _run(run: SamplerRun, batch: Sequence[Case]) -> list[Drawn]:
    logits = np.stack([case.logits for case in batch])
    return [one for one in run.run(bind_host(logits, "float32"), [case.row for case in batch]) if one is not None]


def _wrong(case: Case, found: Drawn) -> Iterator[str]:
    """What is not as the host has it."""
    finite = bool(np.isfinite(case.logits).all())
    if found.finite is not finite:
        yield f"it calls the row {'finite' if found.finite else 'not finite'}"
    if case.decided is not None and found.decided is not case.decided:
        yield f"it {'decides' if found.decided else 'does not decide'} the token"
    if not finite:
        return
    right = on_host(case.logits, case.row)
    yield from _wrong_candidates(case, found, right)
    if found.decided and not _may_be(case.logits, case.row, found.token):
        yield f"it takes the token {found.token}, and the host {right.token}"


def _wrong_candidates(case: Case, found: Drawn, right: Drawn) -> Iterator[str]:
    """They are as likely as the host's, each there once; where nothing was rounded, they are the host's.

    Of those as likely as the last one some are candidates, whichever.
    """
    if len(set(found.candidates.tolist())) < len(found.candidates):
        yield "a candidate is there twice"
    if case.row.seen.size or case.row.suppressed.size or case.row.sampling.temperature != 1:
        return
    above = case.logits[right.candidates] > case.logits[right.candidates[-1]]
    if not np.array_equal(found.candidates[above], right.candidates[above]):
        at = int(np.flatnonzero(found.candidates != right.candidates)[0])
        yield f"candidate {at} is {found.candidates[at]}, and the host's {right.candidates[at]}"


def _may_be(logits: Floats, row: Row, token: int) -> bool:
    """Whether the host takes that token, for this draw or for one too close to it to tell them apart."""
    if row.sampling.greedy:
        return token == on_host(logits, row).token
    shares = (row.sampling.top_p,) if row.sampling.top_p == 1 else (-_EDGE, 0.0, _EDGE)
    for share in shares:
        top_p = row.sampling.top_p if row.sampling.top_p == 1 else row.sampling.top_p + share
        ids, weights = order_of(logits, replace(row, sampling=replace(row.sampling, top_p=top_p)))
        ends = np.cumsum(weights) / weights.sum()
        for at in np.flatnonzero(ids == token):
            start = 0.0 if at == 0 else ends[at - 1]
            if start - _EDGE <= row.draw <= ends[at] + _EDGE:
                return True
    return False


def _compared(case: Case, found: Drawn, name: str) -> Figures:
    """The log-probabilities of what it found, and those that these tokens have."""
    values = case.logits.astype(np.float64)
    logprobs = values - values.max() - np.log(np.exp(values - values.max()).sum())
    right = np.append(logprobs[found.candidates], logprobs[found.token])
    mine = np.append(found.candidate_logprobs, found.logprob)
    return compare("sampler", name, right.clip(min=_LEAST_LOGPROB), mine.clip(min=_LEAST_LOGPROB))
