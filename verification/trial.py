"""Passages put through an engine as answers are made: prefills, decode steps, all slots at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import NotFiniteError
from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.family import Family
from vlm_trt.families.positions import PositionTable
from vlm_trt.probing.in_parts import DeferredSession
from vlm_trt.runtime.backend import Array, Backend, Binding, Session, to_float32
from vlm_trt.runtime.continuation import uploaded
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.step_inputs import Step
from vlm_trt.verification.passages import PICTURES, Passage, pattern

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """One row of logits that the engine made."""

    stage: str
    passage: int  # its number
    run: int  # of the passage
    logits: Floats | None  # [vocab]; None where the run before it failed
    hidden: Floats | None = None  # [hidden], of a model with region heads


@dataclass(frozen=True)
class Seen:
    """One run of vision encoder and resampler."""

    pictures: tuple[int, ...]
    patches: Floats  # [pictures, patches, width]
    features: Floats  # [pictures, tokens, hidden]


def vision_runs(max_images: int, pictures: Sequence[PictureInputs]) -> list[tuple[int, ...]]:
    """A picture alone, and as many as one run takes, in an order that tells each from its neighbours: of different
    pictures where they have one shape."""
    runs: list[tuple[int, ...]] = [(0,)]
    shapes = [{name: array.shape for name, array in one.items()} for one in pictures]
    if max_images > 1 and len(pictures) == PICTURES:
        runs.append(pattern(max_images) if all(one == shapes[0] for one in shapes) else (1,) * max_images)
    return [*runs, *((at,) for at in range(len(pictures)) if all(at not in run for run in runs))]


class Trial:
    """One engine. Its decoder's logits are kept as they come; those of a deferred one at the end."""

    def __init__(self, engine: Engine, family: Family) -> None:
        self._engine, self._family = engine, family
        self._decoder = _Kept(engine.sessions[Component.DECODER], engine.backend)

    def vision(self, pictures: Sequence[PictureInputs], runs: Sequence[tuple[int, ...]]) -> Iterator[Seen]:
        """What each run makes of its pictures.

        Args:
            pictures: every one, preprocessed.
            runs: the pictures of each, at most as many as the engine takes.
        """
        given = [[pictures[at] for at in run] for run in runs]
        encoded = [self._engine.encode_vision(one) for one in given]
        _finish(self._engine.sessions[Component.VISION_ENCODER])
        features = [self._engine.resample(*one) for one in zip(encoded, given, strict=True)]
        _finish(self._engine.sessions[Component.RESAMPLER])
        dtype = self._engine.precision.dtype
        for run, patches, image in zip(runs, encoded, features, strict=True):
            yield Seen(run, to_float32(patches.read(), dtype), to_float32(image.read(), dtype))

    def decoder(self, passages: Sequence[Passage], features: Sequence[Floats]) -> list[Row]:
        """The logits at the end of every run of every passage.

        Args:
            passages: those of stage "batch" last, one per slot.
            features: of every picture [tokens, hidden], rounded to the engine's type by the engine.
        """
        before = self._engine.sessions
        self._engine.sessions = {**before, Component.DECODER: self._decoder}
        try:
            return self._rows(passages, features)
        finally:
            self._engine.sessions = before

    def _rows(self, passages: Sequence[Passage], features: Sequence[Floats]) -> list[Row]:
        asked: list[tuple[str, int, int, tuple[int, int] | None]] = []
        together: list[tuple[int, Passage]] = []
        for number, one in enumerate(passages):
            if one.slot >= self._engine.limits.max_batch:
                continue  # of engines built for fewer sequences
            if one.stage == "batch":
                together.append((number, one))
                continue
            made = self._drafts(one) if one.stage == "check" else self._runs(one, features)
            asked += [(stage, number, run, place) for run, (stage, place) in enumerate(made)]
        asked += self._all_slots(together)
        self._decoder.finish()
        return [Row(stage, number, run, *self._decoder.row(place)) for stage, number, run, place in asked]

    def _runs(self, one: Passage, features: Sequence[Floats]) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """Stage, and number and row of the run's logits, of each run of a passage of its own slot."""
        engine, table = self._engine, self._table(one)
        rows = np.concatenate([features[at] for at in one.pictures]) if one.pictures else None
        stacked = uploaded(engine, rows)
        engine.cache.truncate(one.slot, 0)
        start, failed = 0, False
        for end in one.ends:
            decodes = start > 0 and end == start + 1 and one.rows[start] < 0
            stage = "decode_step" if decodes else one.stage
            if failed:
                yield stage, None
                continue
            at = self._decoder.count
            try:
                if not one.contiguous:
                    self._apart(one, start, end, table)
                elif decodes:
                    engine.decode([Step(one.slot, one.ids[start], table)])
                else:
                    ids = np.array(one.ids[start:end], dtype=np.int64)
                    bound = None if stacked is None else stacked[1]
                    engine.prefill(one.slot, ids, one.rows[start:end], bound, table)
            except NotFiniteError:
                failed = True
            yield stage, (at, 0)
            start = end
        engine.cache.truncate(one.slot, 0)

    def _drafts(self, one: Passage) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """A prefill, and the rest of the passage in one step with logits of every position."""
        engine, table, start = self._engine, self._table(one), one.ends[0]
        ids = np.array(one.ids, dtype=np.int64)
        engine.cache.truncate(one.slot, 0)
        at, checked = self._decoder.count, False
        with suppress(NotFiniteError):
            engine.prefill(one.slot, ids[:start], one.rows[:start], None, table)
            engine.check(one.slot, ids[start:], table)
            checked = True
        yield "prefill", (at, 0)
        for row in range(len(ids) - start):
            yield "check", (at + 1, row) if checked else None
        engine.cache.truncate(one.slot, 0)

    def _apart(self, one: Passage, start: int, end: int, table: PositionTable) -> None:
        """A run whose positions do not follow those in the cache: what lies between is numbered out of sight."""
        positions = one.positions[start:end]
        window = self._engine.limits.max_seq_tokens if end - start == 1 else int(positions[-1]) + 1
        seen = np.full(window, np.iinfo(np.int64).max, dtype=np.int64)
        seen[one.positions[:end]] = one.positions[:end]
        arrays: dict[str, Array] = {
            "input_ids": np.array(one.ids[start:end], dtype=np.int64)[None],
            "image_rows": one.rows[None, start:end],
            "rope_cos": table.cos[None, positions],
            "rope_sin": table.sin[None, positions],
            "query_scale": table.query_scale[None, positions],
            "write_index": positions[:1],
            "attend_until": table.attend_until[None, positions],
            "attend_from": table.attend_from[None, positions],
            "kv_positions": seen,
            "logits_index": np.array([end - start - 1], dtype=np.int64),
        }
        self._engine.run_decoder(one.slot, 1, arrays, None, window)

    def _all_slots(
        self, together: Sequence[tuple[int, Passage]]
    ) -> Iterator[tuple[str, int, int, tuple[int, int] | None]]:
        """Each slot prefilled alone, half of it without logits, as chunks of a long prompt are; then all decoded in one
        step, then every other one in another."""
        engine = self._engine
        for number, one in together:
            engine.cache.truncate(one.slot, 0)
            ids, rows, table = (
                np.array(one.ids[: one.ends[0]], dtype=np.int64),
                one.rows[: one.ends[0]],
                self._table(one),
            )
            half = len(ids) // 2
            engine.extend(one.slot, ids[:half], rows[:half], None, table, last=False)
            at = self._decoder.count
            with suppress(NotFiniteError):
                engine.prefill(one.slot, ids[half:], rows[half:], None, table)
            yield "batch", number, 0, (at, 0)
        for run, pairs in ((1, together), (2, together[::2])):
            if not pairs:
                continue
            at = self._decoder.count
            with suppress(NotFiniteError):
                engine.decode([Step(one.slot, one.ids[one.ends[0] + run - 1], self._table(one)) for _, one in pairs])
            for number, one in pairs:
                yield "batch", number, run, (at, one.slot)
        for _, one in together:
            engine.cache.truncate(one.slot, 0)

    def _table(self, one: Passage) -> PositionTable:
        positions = self._engine.limits.max_seq_tokens
        return self._family.position_table(self._engine.model.decoder, one.shape, positions)


class _Kept:
    """The decoder's session; the logits of every run are kept."""

    def __init__(self, session: Session, backend: Backend) -> None:
        self._session, self._backend = session, backend
        self._logits: list[Floats] = []  # per run [batch, vocab]
        self._hidden: list[Floats | None] = []  # per run [batch, hidden]
        self.count = 0  # runs asked for

    def row(self, place: tuple[int, int] | None) -> tuple[Floats | None, Floats | None]:
        """Logits and hidden state of that run's row of that number."""
        if place is None:
            return None, None
        run, row = place
        hidden = self._hidden[run]
        return self._logits[run][row], None if hidden is None else hidden[row]

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
        self._session.run(inputs, outputs, repeats=repeats)
        self.count += 1
        if not isinstance(self._session, DeferredSession):
            self._keep(outputs)

    def finish(self) -> None:
        _finish(self._session, self._keep)

    def _keep(self, outputs: Mapping[str, Binding]) -> None:
        self._logits.append(self._backend.read(outputs["logits"]).copy())
        hidden = outputs.get("hidden_states")
        self._hidden.append(None if hidden is None else self._backend.read(hidden).copy())


def _finish(session: Session, done: Callable[[Mapping[str, Binding]], None] = lambda _: None) -> None:
    if isinstance(session, DeferredSession):
        session.finish(done)
