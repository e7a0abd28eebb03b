"""The next tokens of several sequences, from the logits in their slots' rows."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generation import Generation
from vlm_trt.runtime.requests import Token

Floats = NDArray[np.float32]


def next_tokens(engine: Engine, sequences: Sequence[Generation]) -> list[Token | Exception]:
    """Of each sequence the token that was drawn for it, in their order, or why there is none."""
    return [_next_token(engine, sequence) for sequence in sequences]


def _next_token(engine: Engine, sequence: Generation) -> Token | Exception:
    logits = engine.logits_of(sequence.place.index)
    if not np.isfinite(logits).all():
        return engine.not_finite()
    try:
        return told(sequence.sampler.next_id(logits), logits, sequence.request.top_logprobs)
    except Exception as error:  # of this sequence alone
        return error


def told(token: int, logits: Floats, top: int | None) -> Token:
    """A token with the log-probabilities that were asked for."""
    if top is None:
        return Token(token, 0.0, ())
    likeliest = np.argsort(-logits, kind="stable")[:top]
    values = logits.astype(np.float64) - logits.max()
    values -= np.log(np.exp(values).sum())
    return Token(token, float(values[token]), tuple((int(one), float(values[one])) for one in likeliest))
