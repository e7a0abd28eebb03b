"""What the decoder is given: of appended tokens, and of a decode step at fixed addresses, where nothing but the window
is bound anew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.backend import Array, Backend

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One sequence's next token, written at the end of its slot."""

    slot: int
    token_id: int
    table: PositionTable
    instead: bool = False  # the slot's row of `Engine.instead_of` stands there, and not the token


def runs_of(steps: Sequence[Step], lengths: Sequence[int], longest: int) -> Iterator[list[Step]]:
    """Steps by slot, split where a full slot, which cannot ride along, lies between two of them.

    Args:
        steps: one of each slot at most.
        lengths: of all slots.
        longest: of a full one.
    """
    ordered = sorted(steps, key=lambda step: step.slot)
    run = ordered[:1]
    for step in ordered[1:]:
        if any(lengths[slot] >= longest for slot in range(run[-1].slot + 1, step.slot)):
            yield run
            run = []
        run.append(step)
    if run:
        yield run


def appended(start: int, ids: Ints, image_rows: Ints, table: PositionTable, scored: Ints) -> dict[str, Array]:
    """Inputs of the decoder by name, of tokens that follow `start` others in one sequence.

    Args:
        ids: token ids [seq].
        image_rows: row of the image features that stands at each, −1 for text [seq].
        table: the sequence's positions.
        scored: which of them get logits; it may be none.
    """
    stop = start + len(ids)
    assert table.attend_until[start:stop].max() < stop, "a position would see what is not written yet"
    return {
        # Those of pictures are not looked up, and may lie outside the vocabulary.
        "input_ids": np.where(image_rows < 0, ids, 0)[None],
        "image_rows": image_rows[None],
        "rope_cos": table.cos[None, start:stop],
        "rope_sin": table.sin[None, start:stop],
        "query_scale": table.query_scale[None, start:stop],
        "write_index": np.array([start], dtype=np.int64),
        "attend_until": table.attend_until[None, start:stop],
        "attend_from": table.attend_from[None, start:stop],
        "logits_index": scored,
    }


class StepInputs:
    """Memory for a row of every slot."""

    def __init__(self, backend: Backend, decoder: DecoderConfig, batch: int) -> None:
        self._rows = backend.host((batch, 1), "int64")
        self._ids = backend.host((batch, 1), "int64")
        self._write_index, self._logits_index = (backend.host((batch,), "int64") for _ in range(2))
        self._logits_index[:] = np.arange(batch)  # of each sequence its only position
        half = decoder.rotary_dim // 2
        self._cos, self._sin = (backend.host((batch, 1, half), "float32") for _ in range(2))
        self._query_scale = backend.host((batch, 1), "float32")
        self._query_scale[:] = 1
        self._attend_from = backend.host((batch, 1), "int64")

    def filled(self, first: int, lengths: Sequence[int], run: Sequence[Step]) -> dict[str, Array]:
        """Inputs of the decoder by name; rows of slots that take no step write behind their end and hold nothing.

        Args:
            first: the slot of the first row.
            lengths: of the slots from there on, a row each.
            run: steps of some of them.
        """
        count = len(lengths)
        self._write_index[:count] = lengths
        self._attend_from[:count] = 0
        self._ids[:count] = 0
        self._rows[:count] = -1
        for step in run:
            row, at = step.slot - first, lengths[step.slot - first]
            self._ids[row, 0] = step.token_id
            if step.instead:
                self._rows[row, 0] = step.slot
            self._cos[row, 0], self._sin[row, 0] = step.table.cos[at], step.table.sin[at]
            self._query_scale[row, 0] = step.table.query_scale[at]
            self._attend_from[row, 0] = step.table.attend_from[at]
        return {
            "input_ids": self._ids[:count],
            "image_rows": self._rows[:count],
            "rope_cos": self._cos[:count],
            "rope_sin": self._sin[:count],
            "query_scale": self._query_scale[:count],
            "write_index": self._write_index[:count],
            "attend_until": self._write_index[:count, None],
            "attend_from": self._attend_from[:count],
            "logits_index": self._logits_index[:count],
        }
