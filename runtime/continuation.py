"""A prompt and given tokens after it: the logits without sampling, to be compared with another engine's."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_trt.families.messages import Prompt
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.backend import from_float32
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.features import Features
from vlm_trt.runtime.step_inputs import Step

Floats = NDArray[np.float32]


def uploaded(engine: Engine, features: Floats | None) -> Features | None:
    """Image features [images, tokens, hidden] in fp32, rounded to the engine's type, where it computes."""
    if features is None:
        return None
    dtype = engine.precision.dtype
    memory = engine.backend.upload(from_float32(features, dtype), dtype)
    return memory, memory.rows(0, memory.shape[0])


def prefill_runs(start: int, stop: int, size: int, prefix: int) -> Iterator[slice]:
    """The positions start…stop−1 in runs of that size; what sees all of a prefix is not run before the prefix ends."""
    while start < stop:
        end = min(max(start + size, prefix), stop)
        yield slice(start, end)
        start = end


class Continuation:
    """One sequence in a slot that nothing else uses."""

    def __init__(self, engine: Engine, prompt: Prompt, features: Features | None, table: PositionTable) -> None:
        """
        Args:
            engine: computes.
            prompt: ids and image spans.
            features: of its pictures [images, tokens, hidden], where the backend computes, after the memory they lie
                in; None without pictures.
            table: the sequence's positions.
        """
        self._engine, self._prompt, self._features, self._table = engine, prompt, features, table
        self._slot = 0

    def prefill(self, slot: int = 0, chunk: int | None = None, extra: Sequence[int] = ()) -> Floats:
        """Logits [vocab] after the prompt and `extra`, whole or in chunks, from an emptied slot."""
        engine, kept = self._engine, self._features
        self._slot = slot
        engine.cache.truncate(slot, 0)
        ids = np.array([*self._prompt.ids, *extra], dtype=np.int64)
        rows = self._prompt.image_rows(len(ids))
        features = None if kept is None else kept[1]
        *before, last = prefill_runs(0, len(ids), len(ids) if chunk is None else chunk, self._prompt.prefix)
        with engine.in_use:
            for part in before:
                engine.extend(slot, ids[part], rows[part], features, self._table, last=False)
            return engine.prefill(slot, ids[last], rows[last], features, self._table)

    def step(self, token: int, slot: int | None = None) -> Step:
        """The decode step that appends a token."""
        return Step(self._slot if slot is None else slot, token, self._table)

    def decode(self, token: int) -> Floats:
        """Logits [vocab] after one more token."""
        logits: Floats = self._engine.decode([self.step(token)])[0]
        return logits

    def forced(self, ids: Sequence[int]) -> Floats:
        """Logits [len(ids), vocab] before each of the ids, whatever they say themselves."""
        return np.stack([self.prefill(), *(self.decode(token) for token in ids[:-1])])
