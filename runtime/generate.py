"""The generation loop: prefill a prompt into a slot, then decode all running sequences together, token by token."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from vlm_trt.bundle.errors import PromptError, VlmTrtError
from vlm_trt.families.family import Family, Tokenizer
from vlm_trt.families.messages import Prompt
from vlm_trt.families.positions import PositionTable
from vlm_trt.runtime.continuation import Continuation, prefill_runs
from vlm_trt.runtime.engine import Engine, Floats, Step
from vlm_trt.runtime.features import FeatureCache, ImageFeatures, together
from vlm_trt.runtime.sampler import Sampler, Sampling, require_in_range
from vlm_trt.runtime.slots import Key, Slot, SlotTable
from vlm_trt.runtime.text_stream import TextStream
from vlm_trt.runtime.timing import StageClock


@dataclass(frozen=True)
class Request:
    """What to generate from one prompt."""

    prompt: Prompt
    sampling: Sampling
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    ignore_eos: bool = False  # end-of-text is never chosen and the other stop ids do not stop

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: max_new_tokens is no such number.
        """
        require_in_range("max_new_tokens", self.max_new_tokens)


@dataclass
class Running:
    """One sequence in generation. Written by `Generator` only."""

    request: Request
    slot: Slot
    table: PositionTable
    sampler: Sampler
    text_stream: TextStream
    images: list[ImageFeatures]
    clock: StageClock
    reused_tokens: int  # positions of the prompt that the slot held already
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None  # "stop", "length", or "error"
    error: Exception | None = None  # why it ended with "error"


class Generator:
    """Starts sequences and steps them. Sequences may start and end at any time between two steps.

    A failure belongs to one sequence: it ends with "error" and its slot is free again; the others go on.
    Every call may raise a UsageError: another thread uses the engine.
    """

    def __init__(self, engine: Engine, family: Family, tokenizer: Tokenizer, prefill_chunk_tokens: int = 512) -> None:
        self.engine, self._family, self._tokenizer = engine, family, tokenizer
        self._chunk = prefill_chunk_tokens
        self.features = FeatureCache(engine, family)
        self._slots = SlotTable(engine.cache)

    def start(self, request: Request, clock: StageClock | None = None) -> Running:
        """Encodes the pictures, prefills the prompt, samples the first token.

        Raises:
            PromptError: the prompt is empty, longer than the cache, or holds ids that the model does not have.
            UsageError: no slot is free, or a stop string is empty.
            NotFiniteError: the logits are not finite.
        """
        with self.engine.in_use:
            return self._start(request, StageClock() if clock is None else clock)

    @property
    def free_slots(self) -> int:
        """Sequences that can be started now."""
        return self._slots.free

    def require_slot(self) -> None:
        """
        Raises:
            UsageError: no sequence can be started now.
        """
        self._slots.require_free()

    def _start(self, request: Request, clock: StageClock) -> Running:
        prompt, limits, decoder = request.prompt, self.engine.limits, self.engine.model.decoder
        _require_usable(prompt, limits.max_seq_tokens, decoder.vocab_size)
        # All that may be refused comes before a slot is taken.
        sampler = Sampler(request.sampling, self._suppressed(request))
        text_stream = TextStream(
            self._tokenizer.visible_bytes, request.stop_strings, drops_first_blank=self._tokenizer.drops_first_blank
        )
        images = self.features.encode(prompt.images, clock) if prompt.images else []
        table = self._family.position_table(decoder, prompt.shape, limits.max_seq_tokens)
        keys = _keys(prompt, images)
        slot = self._slots.acquire(keys, table.rotation, prompt.prefix)
        running = Running(request, slot, table, sampler, text_stream, images, clock, reused_tokens=len(slot.keys))
        try:
            self._prefill(running, keys)
        except BaseException:
            self._slots.release(slot)
            raise
        if running.error is not None:
            raise running.error
        return running

    def forget(self) -> None:
        """Beginnings and pictures of earlier sequences are not used again."""
        with self.engine.in_use:
            self.features.forget()
            self._slots.forget()

    def continuation(self, prompt: Prompt) -> Continuation:
        """The prompt in the first slot, for its logits under given tokens. No sequence may be in flight; beginnings and
        pictures of earlier ones are forgotten.

        Raises:
            PromptError: as `start` has it.
        """
        with self.engine.in_use:
            return self._continuation(prompt)

    def _continuation(self, prompt: Prompt) -> Continuation:
        limits, decoder = self.engine.limits, self.engine.model.decoder
        _require_usable(prompt, limits.max_seq_tokens, decoder.vocab_size)
        self.forget()
        images = self.features.encode(prompt.images, StageClock()) if prompt.images else []
        table = self._family.position_table(decoder, prompt.shape, limits.max_seq_tokens)
        return Continuation(self.engine, prompt, together(images, self.engine.backend) if images else None, table)

    def step(self, sequences: Iterable[Running]) -> None:
        """One decode step of all unfinished sequences together; each gains a token and may finish.

        A sequence that fails ends with "error" and keeps what ended it; nothing of it reaches the others.
        """
        with self.engine.in_use:
            self._step([sequence for sequence in sequences if sequence.finish_reason is None])

    def stop(self, sequence: Running, reason: str = "stop") -> None:
        """Ends a sequence and frees its slot; its cached beginning stays usable."""
        if sequence.finish_reason is not None:
            return
        self._end(sequence, reason)
        try:
            sequence.text += sequence.text_stream.finish()
        except Exception as error:  # whatever a tokenizer stumbles over
            sequence.finish_reason, sequence.error = "error", error

    def _end(self, sequence: Running, reason: str, error: Exception | None = None) -> None:
        sequence.finish_reason, sequence.error = reason, error
        self._slots.release(sequence.slot)

    def _step(self, sequences: Sequence[Running]) -> None:
        active = [sequence for sequence in sequences if self._has_cache(sequence)]
        if not active:
            return
        steps = [Step(sequence.slot.index, sequence.ids[-1], sequence.table) for sequence in active]
        clock = StageClock()
        found: Sequence[Floats | Exception]
        try:
            with clock.stage("decode_step"):
                found = self.engine.decode_each(steps)
        except Exception as error:
            found = [error] * len(steps)
        for logits, sequence in zip(found, active, strict=True):
            sequence.clock.spans += clock.spans
            if isinstance(logits, Exception):
                self._end(sequence, "error", logits)
                continue
            sequence.slot.keys.append(sequence.ids[-1])
            try:
                self._take(sequence, logits)
            except Exception as error:  # a tokenizer's or a family's, of this sequence alone
                self._end(sequence, "error", error)

    def _has_cache(self, sequence: Running) -> bool:
        """Whether the slot holds what its sequence wrote; a failed or interrupted step may have taken it away."""
        if self.engine.cache.lengths[sequence.slot.index] == len(sequence.slot.keys):
            return True
        lost = VlmTrtError("the cache of this sequence was lost in a step that failed; start it again")
        self._end(sequence, "error", lost)
        return False

    def _prefill(self, running: Running, keys: Sequence[Key]) -> None:
        prompt, start = running.request.prompt, running.reused_tokens
        ids = np.array(prompt.ids, dtype=np.int64)
        rows = prompt.image_rows()
        with running.clock.stage("prefill"):
            engine = self.engine
            kept, features = None, None  # the memory must outlive the runs
            if (rows[start:] >= 0).any():
                kept, features = together(running.images, engine.backend)
            for part in prefill_runs(start, len(ids), self._chunk, prompt.prefix):
                logits = engine.prefill(running.slot.index, ids[part], rows[part], features, running.table)
                running.slot.keys += keys[part]
            del kept
        running.sampler.observe(prompt.ids)
        self._take(running, logits)

    def _take(self, sequence: Running, logits: Floats) -> None:
        """Samples the next token and decides whether the sequence ends with it."""
        request, clock = sequence.request, sequence.clock
        with clock.stage("sampling"):
            token = sequence.sampler.next_id(logits)
        sequence.ids.append(token)
        if token in self._tokenizer.stop_ids and not request.ignore_eos:
            self.stop(sequence)
            return
        with clock.stage("detokenization"):
            sequence.text += sequence.text_stream.push(token)
        full = self.engine.cache.lengths[sequence.slot.index] >= self.engine.limits.max_seq_tokens
        if sequence.text_stream.stopped:
            self.stop(sequence)
        elif full or len(sequence.ids) >= request.max_new_tokens:
            self.stop(sequence, "length")

    def _suppressed(self, request: Request) -> frozenset[int]:
        return frozenset({self._tokenizer.end_of_text}) if request.ignore_eos else frozenset()


def _require_usable(prompt: Prompt, max_seq_tokens: int, vocab_size: int) -> None:
    if not prompt.ids:
        raise PromptError("the prompt is empty; say something or give a picture")
    if len(prompt.ids) > max_seq_tokens:
        raise PromptError(
            f"the prompt has {len(prompt.ids)} tokens and the bundle holds {max_seq_tokens} positions; "
            "shorten it or export with a larger --max-seq-tokens"
        )
    ids = np.where(prompt.image_rows() < 0, prompt.ids, 0)  # those of pictures are not looked up
    if not 0 <= ids.min() <= ids.max() < vocab_size:
        raise PromptError(f"the prompt holds ids outside 0…{vocab_size - 1}; give ids of this model's tokenizer")


def _keys(prompt: Prompt, images: Sequence[ImageFeatures]) -> list[Key]:
    keys: list[Key] = list(prompt.ids)
    for span in prompt.spans:
        digest = images[span.image].digest
        keys[span.start : span.stop] = [(digest, row) for row in range(span.stop - span.start)]
    return keys
