"""The sampler's graph: rows of logits, where they lie, and the settings of each → what was chosen from each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_trt.bundle.signature import candidate_count, edits_width
from vlm_trt.runtime.backend import Array, Backend, Binding, Session, bind_host
from vlm_trt.runtime.sampler import Drawn, Floats, Ints, Row

__all__ = ["Drawn", "Row", "SamplerRun"]

# The largest number below one that fp32 has; draws near one would be rounded to it.
_BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))
# What settings beyond are computed as: the others of fp32 would become zero or infinite.
_MOST, _LEAST = 1e30, 1e-30


class SamplerRun:
    """Runs the sampler's graph, at fixed addresses: nothing but another number of rows or edits is bound anew."""

    def __init__(self, session: Session, backend: Backend, vocab_size: int, max_batch: int) -> None:
        """
        Args:
            session: the graph, or the engine built from it.
            backend: where it runs.
            vocab_size: of the logits.
            max_batch: the most rows of a run.
        """
        self._session, self._backend, self._max_batch = session, backend, max_batch
        self._settings: dict[str, Array] = {
            "temperature": backend.host((max_batch,), "float32"),
            "top_k": backend.host((max_batch,), "int64"),
            "top_p": backend.host((max_batch,), "float32"),
            "draw": backend.host((max_batch,), "float32"),
        }
        candidates = candidate_count(vocab_size)
        self._found: dict[str, Array] = {
            "token": backend.host((max_batch,), "int64"),
            "logprob": backend.host((max_batch,), "float32"),
            "candidates": backend.host((max_batch, candidates), "int64"),
            "candidate_logprobs": backend.host((max_batch, candidates), "float32"),
            "finite": backend.host((max_batch,), "int64"),
            "decided": backend.host((max_batch,), "int64"),
        }
        self._edits: dict[int, _Edits] = {}  # by their width

    def run(self, logits: Binding, rows: Sequence[Row | None]) -> list[Drawn | None]:
        """What is chosen from each row, in their order; nothing from those that are None, which ride along.

        Args:
            logits: [len(rows), vocab] in fp32, where the backend computes or on the host.
            rows: settings and draw of each.
        """
        assert logits.shape[0] == len(rows) <= self._max_batch
        edits = self._edits_of(max((_count(row) for row in rows if row is not None), default=0))
        for at, row in enumerate(rows):
            self._set(at, row)
            edits.set(at, row)
        inputs = _bound({**self._settings, **edits.arrays}, len(rows))
        self._session.run({"logits": logits, **inputs}, _bound(self._found, len(rows)), repeats=True)
        return [None if row is None else self._drawn(at) for at, row in enumerate(rows)]

    def _edits_of(self, count: int) -> "_Edits":
        """The memory of the narrowest edits that take so many."""
        width = edits_width(count)
        if width not in self._edits:
            self._edits[width] = _Edits(self._backend, self._max_batch, width)
        return self._edits[width]

    def _set(self, at: int, row: Row | None) -> None:
        greedy = row is None or row.sampling.greedy
        temperature, top_k, top_p, draw = 1.0, 0, 1.0, -1.0
        if row is not None and not greedy:
            sampling = row.sampling
            temperature, top_k, top_p = min(sampling.temperature, _MOST), sampling.top_k, max(sampling.top_p, _LEAST)
            draw = min(np.float32(row.draw), _BELOW_ONE)
        for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p), ("draw", draw)):
            self._settings[name][at] = value

    def _drawn(self, at: int) -> Drawn:
        found = self._found
        return Drawn(
            token=int(found["token"][at]),
            logprob=float(found["logprob"][at]),
            candidates=found["candidates"][at].copy(),
            candidate_logprobs=found["candidate_logprobs"][at].copy(),
            finite=bool(found["finite"][at]),
            decided=bool(found["decided"][at]),
        )


@dataclass(frozen=True)
class _Entries:
    """The edits of one row, each id once [edits]."""

    ids: Ints
    penalty: Floats
    offset: Floats


class _Edits:
    """Memory for the edits of every row, all of them as wide."""

    def __init__(self, backend: Backend, max_batch: int, width: int) -> None:
        self.arrays: dict[str, Array] = {
            "edited_ids": backend.host((max_batch, width), "int64"),
            "penalty": backend.host((max_batch, width), "float32"),
            "offset": backend.host((max_batch, width), "float32"),
        }

    def set(self, at: int, row: Row | None) -> None:
        """What is not needed of the width repeats the row's first edit, and changes nothing where it has none."""
        entries = _NONE if row is None or _count(row) == 0 else _entries(row)
        for name, values in (("edited_ids", entries.ids), ("penalty", entries.penalty), ("offset", entries.offset)):
            self.arrays[name][at, : len(values)] = values
            self.arrays[name][at, len(values) :] = values[0]


def _entries(row: Row) -> _Entries:
    """Seen ids with the penalty; suppressed ones at −∞, whether they were seen or not."""
    # Suppressed ids are few and seen ones many, where np.isin takes as long as the graph.
    new = [one for one in row.suppressed.tolist() if not (row.seen == one).any()]
    ids = np.concatenate((row.seen, np.array(new, dtype=np.int64)))
    penalty, offset = np.ones(len(ids), dtype=np.float32), np.zeros(len(ids), dtype=np.float32)
    penalty[: len(row.seen)] = row.sampling.repetition_penalty
    for one in row.suppressed.tolist():
        offset[ids == one] = -np.inf
    return _Entries(ids, penalty, offset)


def _count(row: Row) -> int:
    return len(row.seen) + len(row.suppressed)


def _bound(arrays: dict[str, Array], rows: int) -> dict[str, Binding]:
    """The first rows of each."""
    return {
        name: bind_host(array[:rows], "int64" if array.dtype == np.int64 else "float32")
        for name, array in arrays.items()
    }


_NONE = _Entries(np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.float32))
