"""The three sessions and the cache: encode pictures, prefill one slot, decode many. No sampling, no text."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig, within
from vlm_trt.bundle.errors import NotFiniteError, PromptError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import signature
from vlm_trt.families.contract import PictureInputs, of_connector, of_tower, patch_count, stacked, tile_count
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.backend import (
    Array,
    Backend,
    Binding,
    Buffer,
    Session,
    bind_all,
    contiguous,
    flat,
    rounded_window,
)
from vlm_trt.runtime.cache import KVCache
from vlm_trt.runtime.decoder_outputs import DecoderOutputs
from vlm_trt.runtime.in_use import InUse
from vlm_trt.runtime.region import RegionRun
from vlm_trt.runtime.sampler import Drawn, Row
from vlm_trt.runtime.sampling_run import SamplerRun
from vlm_trt.runtime.step_inputs import Step, StepInputs, appended, runs_of

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Engine:
    """Runs the graphs of one bundle in one precision on one backend."""

    def __init__(
        self,
        model: ModelConfig,
        limits: Limits,
        precision: Precision,
        backend: Backend,
        sessions: Mapping[Component, Session],
        cache: KVCache,
    ) -> None:
        model = within(model, limits)
        self.model, self.limits, self.precision, self.backend = model, limits, precision, backend
        self.sessions, self.cache = sessions, cache
        self.in_use = InUse()
        decoder, batch = model.decoder, limits.max_batch
        self._positions = backend.host((limits.max_seq_tokens,), "int64")
        self._positions[:] = np.arange(limits.max_seq_tokens)
        # [1, hidden], or where places are told a row per slot: what stands at its next position instead of a token.
        rows = 1 if model.region is None else batch
        self._instead = backend.allocate((rows, decoder.hidden), precision.dtype)
        self.outputs = DecoderOutputs(backend, model, batch)
        self.region: RegionRun | None = None
        if model.region is not None:
            self.region = RegionRun(sessions[Component.REGION], backend, model.region, precision.dtype)
        self._step_inputs = StepInputs(backend, decoder, batch)
        self._sampler = SamplerRun(sessions[Component.SAMPLER], backend, decoder.vocab_size, batch)
        contract = signature(Component.DECODER, model, limits, precision)
        self._inputs = frozenset(tensor.name for tensor in contract.inputs)

    def encode_vision(self, pictures: Sequence[PictureInputs]) -> Buffer:
        """Patch features [images, patches, width], where the backend computes.

        Args:
            pictures: preprocessed; together at most `limits.max_images` tiles, all of one shape.
        Raises:
            ResourceError: there is no memory for them.
        """
        arrays = contiguous(stacked(pictures))
        images = tile_count(arrays)
        assert images <= self.limits.max_images
        shape = (images, patch_count(arrays, self.model), self.model.vision.width)
        self.backend.require_room(self.model, shape[1], images)
        features = self.backend.allocate(shape, self.precision.dtype)
        inputs = bind_all(of_tower(arrays, self.model))
        self.sessions[Component.VISION_ENCODER].run(inputs, {"vision_features": features.rows(0, images)})
        return features

    def features(self, images: int, patches: int) -> Buffer:
        """Room for image features [images, tokens, hidden] of images of so many patches, where the backend computes."""
        shape = (images, self.model.tokens_of(patches), self.model.connector.hidden)
        return self.backend.allocate(shape, self.precision.dtype)

    def resample(
        self,
        vision_features: Buffer,
        pictures: Sequence[PictureInputs],
        features: Buffer | None = None,
        first: int = 0,
    ) -> Buffer:
        """Image features [images, tokens, hidden], where the backend computes.

        Args:
            vision_features: of a run of the vision encoder.
            pictures: what that run was given.
            features: where they are to lie, from row `first` on; None: in memory of their own.
            first: a row.
        """
        images = vision_features.shape[0]
        features = self.features(images, vision_features.shape[1]) if features is None else features
        outputs = {"image_features": features.rows(first, images)}
        kept = contiguous(stacked([of_connector(one, self.model) for one in pictures]))
        inputs = {"vision_features": vision_features.rows(0, images), **bind_all(kept)}
        self.sessions[Component.RESAMPLER].run(inputs, outputs)
        return features

    def prefill(self, slot: int, ids: Ints, image_rows: Ints, features: Binding | None, table: PositionTable) -> Floats:
        """Appends tokens to a slot; logits [vocab] of the last of them, on the host. Arguments as `extend` has them.

        Raises:
            PromptError: the slot has no room for them.
            NotFiniteError: the logits are not finite. After this and any other failed run the slot is cleared.
        """
        with self.in_use:
            self.extend(slot, ids, image_rows, features, table)
            return self._finite_logits(slot)

    def extend(
        self,
        slot: int,
        ids: Ints,
        image_rows: Ints,
        features: Binding | None,
        table: PositionTable,
        *,
        last: bool = True,
    ) -> None:
        """Appends tokens to a slot; the logits of the last of them then lie in the slot's row of `logits`.

        Args:
            slot: the sequence's row of the cache.
            ids: token ids [seq].
            image_rows: row of `features` that stands at each position, −1 for text [seq].
            features: image features [images, tokens, hidden], where the backend computes; None where no row refers
                to them.
            table: the sequence's positions.
            last: whether anybody wants these logits. Where not, the head over the vocabulary is left out if the
                backend can, and the row holds nothing.
        Raises:
            PromptError: the slot has no room for them. After any failed run the slot is cleared.
        """
        count, seq = 1 if last else self.backend.fewest_scored, ids.shape[0]
        scored = np.arange(seq - count, seq)
        self._append(slot, ids, image_rows, features, table, scored, self.outputs.of_slots(slot, count))

    def check(self, slot: int, ids: Ints, table: PositionTable) -> Floats:
        """Logits [seq, vocab] of every one of a few tokens that are appended to a slot, on the host.

        Args:
            slot: the sequence's row of the cache; `cache.truncate` takes back what turns out to be wrong.
            ids: token ids [seq], at most 1 + DRAFT_TOKENS.
            table: the sequence's positions.
        Raises:
            PromptError: the slot has no room for them. After any failed run the slot is cleared.
        """
        seq = len(ids)
        outputs = self.outputs.of_checked(seq)
        self._append(slot, ids, np.full(seq, -1), None, table, np.arange(seq), outputs)
        return np.asarray(self.backend.read(outputs["logits"]))

    def _append(
        self,
        slot: int,
        ids: Ints,
        image_rows: Ints,
        features: Binding | None,
        table: PositionTable,
        scored: Ints,
        outputs: Mapping[str, Binding],
    ) -> None:
        """Appends tokens to a slot, and writes outputs of the `scored` ones among them."""
        start, seq = self.cache.lengths[slot], ids.shape[0]
        self.cache.require_room(slot, seq)
        inputs = appended(start, ids, image_rows, table, scored)
        window = rounded_window(start + seq, self.limits.max_seq_tokens)
        try:
            self.run_decoder(slot, 1, inputs, features, window, outputs=outputs)
        except Exception:
            self.clear([slot])
            raise
        self.cache.advance(slot, seq)

    def decode(self, steps: Sequence[Step]) -> Floats:
        """Logits [len(steps), vocab] of one step of several sequences at once, in their order, on the host.

        Raises:
            PromptError, NotFiniteError, VlmTrtError: of the first sequence that failed; see `step_each`.
        """
        with self.in_use:
            for error in self.step_each(steps):
                if error is not None:
                    raise error
            return np.stack([self._finite_logits(step.slot) for step in steps])

    def step_each(self, steps: Sequence[Step]) -> list[Exception | None]:
        """One token for each of several sequences at once: why each failed, in their order, or None; the logits of
        those that did not then lie in their slots' rows of `logits`.

        Slots that take no step may ride along, those between the first and the last at least: they write one position
        beyond their end, which their next token overwrites, and their rows of `logits` hold nothing.

        A slot that is full is a PromptError; a run that fails clears the slots of its steps.
        """
        failed: dict[int, Exception] = {}  # by slot
        fitting = []
        for step in steps:
            try:
                self.cache.require_room(step.slot, 1)
                fitting.append(step)
            except PromptError as error:
                failed[step.slot] = error
        for run in runs_of(fitting, self.cache.lengths, self.limits.max_seq_tokens):
            first, count = self._rows(run)
            try:
                self._decode_run(first, count, run)
            except Exception as error:  # a backend raises whatever it stumbles over
                self.clear(step.slot for step in run)
                failed.update({step.slot: error for step in run})
                continue
            for step in run:
                self.cache.advance(step.slot, 1)
        return [failed.get(step.slot) for step in steps]

    def sample(self, rows: Mapping[int, Row]) -> dict[int, Drawn]:
        """What is drawn from the logits of each slot, where they lie; by slot."""
        if not rows:
            return {}
        first, stop = min(rows), max(rows) + 1
        found = self._sampler.run(self.logits.rows(first, stop - first), [rows.get(at) for at in range(first, stop)])
        return {first + at: one for at, one in enumerate(found) if one is not None}

    @property
    def logits(self) -> Buffer:
        """[max_batch, vocab], a row per slot, where the backend computes."""
        return self.outputs.logits

    def logits_of(self, slot: int) -> Floats:
        """The slot's row of `logits` [vocab], on the host."""
        logits: Floats = self.backend.read(self.logits.rows(slot, 1))[0].copy()
        return logits

    def instead_of(self, slot: int) -> Binding:
        """The row [1, hidden] that stands at the slot's next position if its step says so, where the backend
        computes."""
        return self._instead.rows(slot, 1)

    def not_finite(self) -> NotFiniteError:
        """What to tell of logits that are not finite. Their slot must be cleared: 0·NaN under a mask is NaN."""
        return NotFiniteError(
            f"the decoder's logits are not finite in {self.precision}, so this answer ends here. "
            "Use a bf16 or fp32 export of this checkpoint, or see which nodes are to blame: vlm-trt diagnose"
        )

    def clear(self, slots: Iterable[int]) -> None:
        """Zeroes slots after a failure, when nobody knows what they hold."""
        for slot in slots:
            with suppress(VlmTrtError):  # of a GPU that failed; what failed is already on its way to the user
                self.cache.clear(slot)

    def _rows(self, run: Sequence[Step]) -> tuple[int, int]:
        """The slots that a run is given; a full one, which cannot ride along, is in none."""
        first, count = run[0].slot, run[-1].slot - run[0].slot + 1
        wider, more = self.backend.steps.rows(first, count, self.limits.max_batch)
        if max(self.cache.lengths[wider : wider + more]) >= self.limits.max_seq_tokens:
            return first, count
        return wider, more

    def _decode_run(self, first: int, count: int, run: Sequence[Step]) -> None:
        inputs = self._step_inputs.filled(first, self.cache.lengths[first : first + count], run)
        needed = max(self.cache.lengths[step.slot] for step in run) + 1  # what rides along may look at less
        window = self.backend.steps.window(needed, self.limits.max_seq_tokens)
        self.run_decoder(first, count, inputs, None, window, repeats=True)

    def run_decoder(
        self,
        first: int,
        count: int,
        arrays: Mapping[str, Array],
        features: Binding | None,
        window: int,
        *,
        repeats: bool = False,
        outputs: Mapping[str, Binding] | None = None,
    ) -> None:
        """Writes logits and the slots' rows of the cache, whose lengths stay.

        Args:
            first, count: the slots, by whose rows of the cache the graph is bound.
            arrays: inputs of the decoder by name, those that its graph does not have too; `kv_positions` only where
                rows of the window are to be left out.
            features: image features, where the backend computes; None where no row refers to them.
            window: how many positions of the cache are looked at.
            repeats: whether the run will come again with the same shapes and addresses.
            outputs: where a row for each of `logits_index` goes; None: the slots' rows.
        """
        past, present = self.cache.bindings(first, count)
        # Contiguous copies of slices must live until the run ends; slices of whole rows are not copied.
        kept = {"kv_positions": self._positions[:window]}
        kept |= contiguous({name: array for name, array in arrays.items() if name in self._inputs})
        inputs = bind_all(kept)
        inputs["image_features"] = self._instead.rows(0, self._instead.shape[0]) if features is None else flat(features)
        scored = self.outputs.of_slots(first, count) if outputs is None else outputs
        self.sessions[Component.DECODER].run({**inputs, **past}, {**scored, **present}, repeats=repeats)

    def _finite_logits(self, slot: int) -> Floats:
        logits = self.logits_of(slot)
        if not np.isfinite(logits).all():
            self.clear([slot])
            raise self.not_finite()
        return logits
