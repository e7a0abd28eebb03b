"""The three sessions and the cache: encode pictures, prefill one slot, decode many. No sampling, no text."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import NotFiniteError
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.families.family import PositionTable
from vlm_trt.runtime.backend import NUMPY_DTYPES, Array, Backend, Binding, Buffer, Session, bind_host
from vlm_trt.runtime.cache import KVCache

# The window of a decode step grows in these steps, so that shapes repeat; the copy of the last few costs nothing.
WINDOW_STEP = 32

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One sequence's next token, written at the end of its slot."""

    slot: int
    token_id: int
    table: PositionTable


class Engine:
    """Runs the graphs of one bundle in one precision on one backend."""

    def __init__(
        self,
        model: ModelConfig,
        limits: Limits,
        precision: Precision,
        backend: Backend,
        sessions: Mapping[Component, Session],
    ) -> None:
        self.model, self.limits, self.precision, self.backend = model, limits, precision, backend
        self.sessions = sessions
        self.cache = KVCache(backend, model, limits, precision)
        decoder, batch = model.decoder, limits.max_batch
        self._positions = backend.host((limits.max_seq_tokens,), "int64")
        self._positions[:] = np.arange(limits.max_seq_tokens)
        self._no_image = backend.upload(self._zeros(1, decoder.hidden), precision.dtype)
        self._no_rows = backend.host((batch, 1), "int64")
        self._no_rows[:] = -1
        self._logits = backend.host((batch, decoder.vocab_size), "float32")
        # A decode step's inputs live at fixed addresses: nothing but the window is bound anew.
        self._ids = backend.host((batch, 1), "int64")
        self._write_index, self._logits_index = (backend.host((batch,), "int64") for _ in range(2))
        half = decoder.rotary_dim // 2
        self._cos, self._sin = (backend.host((batch, 1, half), "float32") for _ in range(2))
        self._query_scale = backend.host((batch, 1), "float32")
        self._query_scale[:] = 1

    def encode_vision(self, pixels: Floats) -> Buffer:
        """Patch features [images, patches, width], where the backend computes.

        Args:
            pixels: preprocessed, [images, 3, H, W] fp32, at most `limits.max_images`.
        """
        assert pixels.shape[0] <= self.limits.max_images
        vision = self.model.vision
        features = self.backend.allocate((pixels.shape[0], vision.patches, vision.width), self.precision.dtype)
        pixels = np.ascontiguousarray(pixels)
        inputs = {"pixel_values": bind_host(pixels, "float32")}
        self.sessions[Component.VISION_ENCODER].run(inputs, {"vision_features": features.rows(0, pixels.shape[0])})
        return features

    def resample(self, vision_features: Buffer) -> Buffer:
        """Image features [images, queries, hidden], where the backend computes."""
        images, resampler = vision_features.shape[0], self.model.resampler
        features = self.backend.allocate((images, resampler.queries, resampler.hidden), self.precision.dtype)
        outputs = {"image_features": features.rows(0, images)}
        self.sessions[Component.RESAMPLER].run({"vision_features": vision_features.rows(0, images)}, outputs)
        return features

    def prefill(self, slot: int, ids: Ints, image_rows: Ints, features: Binding | None, table: PositionTable) -> Floats:
        """Appends tokens to a slot; logits [vocab] of the last of them.

        Args:
            slot: the sequence's row of the cache.
            ids: token ids [seq].
            image_rows: row of `features` that stands at each position, −1 for text [seq].
            features: image features [images, queries, hidden], where the backend computes; None where no row refers
                to them.
            table: the sequence's positions.
        Raises:
            PromptError: the slot has no room for them.
            NotFiniteError: the logits are not finite; the slot is cleared.
        """
        start, seq = self.cache.lengths[slot], ids.shape[0]
        self.cache.require_room(slot, seq)
        stop = start + seq
        inputs: dict[str, Array] = {
            "input_ids": ids[None],
            "image_rows": image_rows[None],
            "rope_cos": table.cos[None, start:stop],
            "rope_sin": table.sin[None, start:stop],
            "query_scale": table.query_scale[None, start:stop],
            "write_index": np.array([start], dtype=np.int64),
            "attend_until": self._positions[None, start:stop],
            "logits_index": np.array([seq - 1], dtype=np.int64),
        }
        logits = self.run_decoder(slot, 1, inputs, features, window=stop)
        self._require_finite(logits, slot, {slot})
        self.cache.advance(slot, seq)
        last: Floats = logits[0].copy()
        return last

    def decode(self, steps: Sequence[Step]) -> Floats:
        """One token for each of several sequences at once; logits [len(steps), vocab] in their order.

        Slots between the first and the last that take no step ride along: they write one position beyond their
        end, which their next token overwrites.

        Raises:
            PromptError: a slot is full.
            NotFiniteError: a sequence's logits are not finite; its slot is cleared.
        """
        for step in steps:
            self.cache.require_room(step.slot, 1)
        logits = np.empty((len(steps), self.model.decoder.vocab_size), dtype=np.float32)
        for run in self._runs(steps):
            first, count = run[0].slot, run[-1].slot - run[0].slot + 1
            rows = self._decode_run(first, count, run)
            self._require_finite(rows, first, {step.slot for step in run})
            for step in run:
                logits[steps.index(step)] = rows[step.slot - first]
                self.cache.advance(step.slot, 1)
        return logits

    def _runs(self, steps: Sequence[Step]) -> Iterator[list[Step]]:
        """Steps by slot, split where a full slot, which cannot ride along, lies between two of them."""
        ordered = sorted(steps, key=lambda step: step.slot)
        run = ordered[:1]
        for step in ordered[1:]:
            between = range(run[-1].slot + 1, step.slot)
            if any(self.cache.lengths[slot] >= self.limits.max_seq_tokens for slot in between):
                yield run
                run = []
            run.append(step)
        if run:
            yield run

    def _decode_run(self, first: int, count: int, run: Sequence[Step]) -> Floats:
        lengths = self.cache.lengths[first : first + count]
        self._write_index[:count] = lengths
        self._ids[:count] = 0
        for step in run:
            row, at = step.slot - first, self.cache.lengths[step.slot]
            self._ids[row, 0] = step.token_id
            self._cos[row, 0], self._sin[row, 0] = step.table.cos[at], step.table.sin[at]
            self._query_scale[row, 0] = step.table.query_scale[at]
        inputs: dict[str, Array] = {
            "input_ids": self._ids[:count],
            "image_rows": self._no_rows[:count],
            "rope_cos": self._cos[:count],
            "rope_sin": self._sin[:count],
            "query_scale": self._query_scale[:count],
            "write_index": self._write_index[:count],
            "attend_until": self._write_index[:count, None],
            "logits_index": self._logits_index[:count],
        }
        return self.run_decoder(first, count, inputs, None, self._window(max(lengths) + 1))

    def _window(self, needed: int) -> int:
        longest = self.limits.max_seq_tokens
        return longest if self.backend.whole_window else min(-(-needed // WINDOW_STEP) * WINDOW_STEP, longest)

    def run_decoder(
        self, first: int, count: int, arrays: Mapping[str, Array], features: Binding | None, window: int
    ) -> Floats:
        """Logits [count, vocab], in memory that the next run overwrites; the cache is written, its lengths stay.

        Args:
            first, count: the slots, by whose rows of the cache the graph is bound.
            arrays: inputs of the decoder by name; `kv_positions` only where rows of the window are to be left out.
            features: image features, where the backend computes; None where no row refers to them.
            window: how many positions of the cache are looked at.
        """
        past, present = self.cache.bindings(first, count)
        # Contiguous copies of slices must live until the run ends; slices of whole rows are not copied.
        kept = {"kv_positions": self._positions[:window]}
        kept |= {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        inputs = {name: bind_host(a, "int64" if a.dtype == np.int64 else "float32") for name, a in kept.items()}
        if not self.model.decoder.logn_attention:
            del inputs["query_scale"]
        inputs["image_features"] = self._no_image.rows(0, 1) if features is None else _flat(features)
        outputs = {"logits": bind_host(self._logits[:count], "float32"), **present}
        self.sessions[Component.DECODER].run({**inputs, **past}, outputs)
        return self._logits[:count]

    def _require_finite(self, logits: Floats, first: int, stepped: set[int]) -> None:
        """Clears each slot whose logits are not finite, since 0·NaN under a mask is NaN; the others keep theirs."""
        broken = {first + int(row) for row in np.flatnonzero(~np.isfinite(logits).all(axis=1))}
        for slot in broken:
            self.cache.clear(slot)
        if broken & stepped:
            raise NotFiniteError(
                f"the decoder's logits are not finite in {self.precision}; the sequences of this step are lost. "
                "Use a bf16 or fp32 export of this checkpoint, or see which nodes are to blame: vlm-trt diagnose"
            )

    def _zeros(self, *shape: int) -> Array:
        return np.zeros(shape, dtype=NUMPY_DTYPES[self.precision.dtype])


def _flat(features: Binding) -> Binding:
    """[images, queries, hidden] as the decoder takes it: [images·queries, hidden]."""
    return replace(features, shape=(prod(features.shape[:-1]), features.shape[-1]))
