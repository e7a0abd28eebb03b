"""The numbers of a sequence's places: read from the hidden states of its slot, and given back to the decoder."""

from collections.abc import Collection

import numpy as np

from vlm_trt.runtime.choose import greedy_token
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.generation import Generation
from vlm_trt.runtime.locating import MOST_PLACES


def read_number(engine: Engine, sequence: Generation, stop_ids: Collection[int]) -> str | None:
    """Why there is no next number, "stop" or "length"; None where there is one.

    Args:
        engine: whose slot holds the sequence.
        sequence: an answer of places.
        stop_ids: that say, between two places, that there is no other one.
    Raises:
        NotFiniteError: the decoder's hidden state, or what it says, is not finite.
    """
    locator, slot, request = sequence.locator, sequence.place, sequence.request
    assert locator is not None and engine.region is not None
    if locator.may_end():
        token = greedy_token(engine, slot.index)
        sequence.ids.append(token)
        if token in stop_ids:
            return "stop"
    full = engine.cache.lengths[slot.index] >= engine.limits.max_seq_tokens
    said = len(slot.keys) - len(request.prompt.ids)
    enough = locator.may_end() and len(locator.places) >= MOST_PLACES
    if full or enough or said >= request.max_new_tokens:
        return "length"
    heard = engine.region.said(engine.outputs.hidden_of(slot.index))
    if not (np.isfinite(heard.coordinate).all() and np.isfinite(heard.size).all()):
        raise engine.not_finite()
    sequence.text += locator.take(heard)
    return None


def write_number(engine: Engine, sequence: Generation) -> None:
    """Writes what stands at the sequence's next position, of an answer of places: nothing of one in words."""
    if sequence.locator is not None:
        assert engine.region is not None
        sequence.locator.write(engine.region, engine.instead_of(sequence.place.index))
