"""The next tokens of several sequences: drawn where their logits lie, on the host where that does not suffice."""

from collections.abc import Sequence

import numpy as np

from vlm_trt.runtime.engine import Engine, Floats
from vlm_trt.runtime.generation import Generation
from vlm_trt.runtime.requests import Token
from vlm_trt.runtime.sampler import Drawn, Row, choose


def next_tokens(engine: Engine, sequences: Sequence[Generation]) -> list[Token | Exception]:
    """Of each sequence the token that was drawn for it, in their order, or why there is none."""
    rows = {one.place.index: one.sampler.row() for one in sequences}
    found = engine.sample({one.place.index: rows[one.place.index] for one in sequences if _on_graph(engine, one)})
    return [_next_token(engine, one, rows[one.place.index], found.get(one.place.index)) for one in sequences]


def greedy_token(engine: Engine, slot: int) -> int:
    """The likeliest token of a slot.

    Raises:
        NotFiniteError: the logits are not finite.
    """
    logits = engine.logits_of(slot)
    if not np.isfinite(logits).all():
        raise engine.not_finite()
    return int(logits.argmax())


def checked_tokens(
    engine: Engine, sequence: Generation, logits: Floats, draft: Sequence[int]
) -> list[Token | Exception]:
    """The next tokens of a sequence: one, and those drafted after it as far as they would have been drawn.

    Args:
        logits: [1 + draft, vocab], on the host: of the position before the draft and of each of its own.
    """
    found: list[Token | Exception] = []
    for row, drafted in zip(logits, (*draft, None), strict=True):
        try:
            token = _drawn(engine, sequence, sequence.sampler.row(), row)
        except Exception as error:  # a constraint's
            return [*found, error]
        found.append(token)
        if token.id != drafted:
            break
    return found


def _on_graph(engine: Engine, sequence: Generation) -> bool:
    """Not where a grammar says what may come; nor where the logits lie on the host and only the likeliest id is asked
    for, which numpy finds in a tenth of the time."""
    request = sequence.request
    likeliest_alone = request.sampling.greedy and request.top_logprobs is None
    return request.constraint is None and not (likeliest_alone and engine.logits.rows(0, 1).on_host)


def _next_token(engine: Engine, sequence: Generation, row: Row, found: Drawn | None) -> Token | Exception:
    top = sequence.request.top_logprobs
    # The graph's candidates are the likeliest after penalties, and those that are told are the model's own.
    told_are_others = bool(top) and bool(row.seen.size or row.suppressed.size)
    if found is not None and not found.finite:
        return engine.not_finite()
    if found is not None and found.decided and not told_are_others:
        sequence.sampler.observe((found.token,))
        return _told(found, top)
    try:
        return _drawn(engine, sequence, row, engine.logits_of(sequence.place.index))
    except Exception as error:  # a constraint's, of this sequence alone
        return error


def _drawn(engine: Engine, sequence: Generation, row: Row, logits: Floats) -> Token:
    """The next token, drawn on the host.

    Raises:
        NotFiniteError: the logits are not. Exception: of a constraint.
    """
    if not np.isfinite(logits).all():
        raise engine.not_finite()
    constraint = sequence.request.constraint
    allowed = None if constraint is None else constraint.allowed()
    token = _token(choose(logits, row, allowed), logits, sequence.request.top_logprobs)
    if constraint is not None:
        constraint.accept(token.id)
    sequence.sampler.observe((token.id,))
    return token


def _told(found: Drawn, top: int | None) -> Token:
    """What the graph drew, with the log-probabilities that were asked for."""
    if top is None:
        return Token(found.token, 0.0, ())
    likeliest = zip(found.candidates[:top].tolist(), found.candidate_logprobs[:top].tolist(), strict=True)
    return Token(found.token, found.logprob, tuple(likeliest))


def _token(chosen: int, logits: Floats, top: int | None) -> Token:
    """What the host drew."""
    if top is None:
        return Token(chosen, 0.0, ())
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    likeliest = np.argsort(-values, kind="stable")[:top]
    return Token(chosen, float(values[chosen]), tuple((int(one), float(values[one])) for one in likeliest))
