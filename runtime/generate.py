"""What happens to one sequence or to several together: reserved, prefilled in chunks, decoded, ended."""

from collections.abc import Sequence
from itertools import takewhile
from math import prod
from time import perf_counter

import numpy as np

from vlm_trt.bundle.errors import PromptError, UsageError, VlmTrtError
from vlm_trt.families.family import Family, Tokenizer
from vlm_trt.families.messages import Prompt
from vlm_trt.runtime.choose import checked_tokens, next_tokens
from vlm_trt.runtime.continuation import Continuation, prefill_runs
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.features import FeatureCache, ImageFeatures, together
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.locating import Locator
from vlm_trt.runtime.pictures import Pictures
from vlm_trt.runtime.place_numbers import read_number, write_number
from vlm_trt.runtime.requests import Request, Token
from vlm_trt.runtime.sampler import Sampler
from vlm_trt.runtime.slots import Key, SlotTable
from vlm_trt.runtime.speculation import Drafts, Pays
from vlm_trt.runtime.step_inputs import Step
from vlm_trt.runtime.text_stream import TextStream
from vlm_trt.runtime.timing import StageClock


class Generator:
    """Carries out what the scheduler decides. A failure belongs to one sequence: it ends with "error", and its slot is
    free again; nothing of it reaches the others."""

    def __init__(self, engine: Engine, family: Family, tokenizer: Tokenizer) -> None:
        self.engine, self._family, self._tokenizer = engine, family, tokenizer
        self.features = FeatureCache(engine, family)
        self.pictures = Pictures(self.features, overlaps=engine.backend.overlaps)
        self.slots = SlotTable(engine.cache)
        self._pays = Pays()
        # Where activations are rounded to integers, sums in another order become other integers, and near ties turn.
        self._may_draft = engine.precision.kind is None

    def open(self, request: Request, clock: StageClock) -> Generation:
        """A sequence that waits. All that may be refused is refused here, before it takes any room.

        Raises:
            PromptError: the prompt is empty, longer than the cache, or holds ids that the model does not have.
            UsageError: places are asked for with log-probabilities or a grammar.
        """
        prompt, limits, decoder = request.prompt, self.engine.limits, self.engine.model.decoder
        _require_usable(prompt, limits.max_seq_tokens, decoder.vocab_size)
        if prompt.places is not None and (request.constraint is not None or request.top_logprobs is not None):
            raise UsageError("places are no tokens: they have no log-probabilities and no grammar; leave both out")
        generation = self.engine.model.generation
        suppressed = {*generation.suppressed_ids, *({self._tokenizer.end_of_text} if request.ignore_eos else ())}
        return Generation(
            request,
            clock,
            table=self._family.position_table(decoder, prompt.shape, limits.max_seq_tokens),
            sampler=Sampler(request.sampling, suppressed),
            text_stream=TextStream(
                self._tokenizer.visible_bytes, request.stop_strings, drops_first_blank=self._tokenizer.drops_first_blank
            ),
            asked=self.pictures.ask(prompt.images, clock, request.prepared),
            locator=None if prompt.places is None else Locator(prompt.places),
        )

    def prefill(self, sequence: Generation, chunk_tokens: int) -> None:
        """Puts the next chunk of its prompt into the cache, first of all into a slot that is free; behind the last
        chunk it has its first token.
        """
        try:
            if sequence.phase is Phase.WAITING:
                self._reserve(sequence)
            with sequence.clock.stage("prefill"):
                self._prefill(sequence, chunk_tokens)
            if not sequence.unfilled:
                sequence.sampler.observe(sequence.request.prompt.ids)
        except Exception as error:  # a picture's, a backend's
            self.end(sequence, "error", error)
            return
        if not sequence.unfilled:
            sequence.phase, sequence.features = Phase.DECODE, None
            self._take([sequence])

    def decode(self, sequences: Sequence[Generation]) -> None:
        """One decode step of all of them together; each gains a token and may end. One alone may gain several."""
        active = [sequence for sequence in sequences if self._has_cache(sequence) and self._is_written(sequence)]
        if not active:
            return
        if len(active) == 1 and (draft := self._draft(active[0])):
            self._check(active[0], draft)
            return
        steps = [_step(one) for one in active]
        clock = StageClock()
        failures: Sequence[Exception | None]
        try:
            with clock.stage("decode_step"):
                failures = self.engine.step_each(steps)
        except Exception as error:
            failures = [error] * len(steps)
        if len(active) == 1:
            self._pays.step(clock.spans[-1].seconds)
        for failure, sequence in zip(failures, active, strict=True):
            sequence.clock.spans += clock.spans
            if failure is not None:
                self.end(sequence, "error", failure)
            else:
                sequence.place.keys.append(sequence.ids[-1] if sequence.locator is None else sequence.locator.key)
        self._take([sequence for sequence in active if sequence.phase is Phase.DECODE])

    def end(self, sequence: Generation, reason: str, error: Exception | None = None) -> None:
        """Ends a sequence and frees its slot; its cached beginning stays usable."""
        if sequence.phase is Phase.ENDED:
            return
        sequence.phase, sequence.finish_reason, sequence.error = Phase.ENDED, reason, error
        sequence.features = None
        sequence.asked.cancel()
        if sequence.slot is not None:
            self.slots.release(sequence.slot)
        try:
            sequence.text += sequence.text_stream.finish()
        except Exception as broken:  # whatever a tokenizer stumbles over
            sequence.finish_reason, sequence.error = "error", error or broken

    def forget(self) -> None:
        """Beginnings and pictures of earlier sequences are not used again."""
        with self.engine.in_use:
            self.features.forget()
            self.slots.forget()

    def continuation(self, prompt: Prompt) -> Continuation:
        """The prompt in the first slot, for its logits under given tokens. No sequence may be in flight; beginnings and
        pictures of earlier ones are forgotten.

        Raises:
            PromptError: as `open` has it. UsageError: another thread uses the engine.
        """
        with self.engine.in_use:
            limits, decoder = self.engine.limits, self.engine.model.decoder
            _require_usable(prompt, limits.max_seq_tokens, decoder.vocab_size)
            self.forget()
            images = self.features.encode(prompt.images, StageClock()) if prompt.images else []
            table = self._family.position_table(decoder, prompt.shape, limits.max_seq_tokens)
            features = together(images, self.engine.backend) if images else None
            return Continuation(self.engine, prompt, features, table)

    def _reserve(self, sequence: Generation) -> None:
        sequence.images = sequence.asked.result()
        prompt = sequence.request.prompt
        sequence.keys = _keys(prompt, sequence.images)
        sequence.slot = self.slots.acquire(sequence.keys, sequence.table.rotation, prompt.prefix)
        # From where the prompt is computed on, if a picture stands there.
        if (prompt.image_rows()[len(sequence.slot.keys) :] >= 0).any():
            sequence.features = together(sequence.images, self.engine.backend)
        sequence.queue_ms = (perf_counter() - sequence.opened) * 1000
        sequence.reused_tokens = len(sequence.slot.keys)
        sequence.phase = Phase.PREFILL

    def _prefill(self, sequence: Generation, chunk_tokens: int) -> None:
        prompt, slot, engine = sequence.request.prompt, sequence.place, self.engine
        part = next(prefill_runs(len(slot.keys), len(prompt.ids), chunk_tokens, prompt.prefix))
        ids, rows = np.array(prompt.ids[part], dtype=np.int64), prompt.image_rows()[part]
        features = None if sequence.features is None else sequence.features[1]
        engine.extend(slot.index, ids, rows, features, sequence.table, last=part.stop == len(prompt.ids))
        slot.keys += sequence.keys[part]

    def _is_written(self, sequence: Generation) -> bool:
        """Whether what stands at its next position is there: of a place, a row of features."""
        try:
            write_number(self.engine, sequence)
        except Exception as error:  # a backend raises whatever it stumbles over
            self.end(sequence, "error", error)
        return sequence.phase is not Phase.ENDED

    def _draft(self, sequence: Generation) -> list[int]:
        """What may come after the token that the next step computes; empty where that is not known, or does not pay."""
        request, place = sequence.request, sequence.place.index
        room = self.engine.limits.max_seq_tokens - self.engine.cache.lengths[place]
        most = min(request.max_new_tokens - len(sequence.ids) - 1, room - 2)
        wanted = self._may_draft if request.speculation is None else request.speculation
        greedy = request.sampling.greedy and sequence.locator is None
        if not (wanted and greedy and most > 0 and self._pays.worth_trying()):
            return []
        if sequence.drafts is None:
            sequence.drafts = Drafts(request.prompt.ids)
        sequence.drafts.follow(sequence.ids)
        return list(takewhile(lambda one: one not in self._tokenizer.stop_ids, sequence.drafts.draft(most)))

    def _check(self, sequence: Generation, draft: list[int]) -> None:
        """A step that computes the next token and, where drafted ones are right, those behind it."""
        engine, place, clock = self.engine, sequence.place, StageClock()
        ids, before = [sequence.ids[-1], *draft], len(sequence.place.keys)
        try:
            with clock.stage("decode_step"):
                logits = engine.check(place.index, np.array(ids, dtype=np.int64), sequence.table)
            with clock.stage("sampling"):
                chosen = checked_tokens(engine, sequence, logits, draft)
        except Exception as error:  # a backend raises whatever it stumbles over
            engine.clear([place.index])
            self.end(sequence, "error", error)
            return
        finally:
            sequence.clock.spans += clock.spans
        self._pays.check(clock.spans[0].seconds, len(chosen))
        engine.cache.truncate(place.index, before + len(chosen))
        place.keys += ids[: len(chosen)]
        for token in chosen:
            if sequence.phase is Phase.DECODE:
                self._accept(sequence, token)

    def _has_cache(self, sequence: Generation) -> bool:
        """Whether the slot holds what its sequence wrote; a failed or interrupted step may have taken it away."""
        if self.engine.cache.lengths[sequence.place.index] == len(sequence.place.keys):
            return True
        lost = VlmTrtError("the cache of this sequence was lost in a step that failed; start it again")
        self.end(sequence, "error", lost)
        return False

    def _take(self, sequences: Sequence[Generation]) -> None:
        """Draws the next token of each, or reads the next number of a place, and decides whether it ends with it."""
        for sequence in sequences:
            if sequence.locator is not None:
                self._locate(sequence)
        sequences = [sequence for sequence in sequences if sequence.locator is None]
        if not sequences:
            return
        clock = StageClock()
        chosen: Sequence[Token | Exception]
        try:
            with clock.stage("sampling"):
                chosen = next_tokens(self.engine, sequences)
        except Exception as error:  # a backend raises whatever it stumbles over
            chosen = [error] * len(sequences)
        for token, sequence in zip(chosen, sequences, strict=True):
            sequence.clock.spans += clock.spans
            self._accept(sequence, token)

    def _locate(self, sequence: Generation) -> None:
        """The next number of its places, or the end of them."""
        try:
            with sequence.clock.stage("sampling"):
                reason = read_number(self.engine, sequence, self._tokenizer.stop_ids)
        except Exception as error:  # a backend raises whatever it stumbles over
            self.engine.clear([sequence.place.index])
            self.end(sequence, "error", error)
            return
        if reason is not None:
            self.end(sequence, reason)

    def _accept(self, sequence: Generation, token: Token | Exception) -> None:
        """The next token of a sequence, or why it has none."""
        if isinstance(token, Exception):
            self.engine.clear([sequence.place.index])
            self.end(sequence, "error", token)
            return
        try:
            self._append(sequence, token)
        except Exception as error:  # a tokenizer's, of this sequence alone
            self.end(sequence, "error", error)

    def _append(self, sequence: Generation, token: Token) -> None:
        request = sequence.request
        sequence.ids.append(token.id)
        if request.top_logprobs is not None:
            sequence.tokens.append(token)
        if token.id in self._tokenizer.stop_ids and not request.ignore_eos:
            self.end(sequence, "stop")
            return
        with sequence.clock.stage("detokenization"):
            sequence.text += sequence.text_stream.push(token.id)
        full = self.engine.cache.lengths[sequence.place.index] >= self.engine.limits.max_seq_tokens
        if sequence.text_stream.stopped:
            self.end(sequence, "stop")
        elif full or len(sequence.ids) >= request.max_new_tokens:
            self.end(sequence, "length")


def _step(sequence: Generation) -> Step:
    """The step that appends what the sequence said last."""
    slot = sequence.place.index
    if sequence.locator is None:
        return Step(slot, sequence.ids[-1], sequence.table)
    return Step(slot, 0, sequence.table, instead=True)


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
    rows = dict.fromkeys(range(len(images)), 0)  # of each picture, those that stand before
    for span in prompt.spans:
        first, tokens = rows[span.image], span.stop - span.start
        keys[span.start : span.stop] = [(images[span.image].key, row) for row in range(first, first + tokens)]
        rows[span.image] = first + tokens
    made = {at: prod(one.features().shape[:-1]) for at, one in enumerate(images)}
    assert rows == made, f"the prompt has {rows} rows of pictures, their features {made}"
    return keys
