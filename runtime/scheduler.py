"""Which sequence runs next. One thread calls it, step by step; everything else waits for its turn here."""

from collections.abc import Callable
from time import monotonic

from vlm_trt.bundle.errors import DeadlineError
from vlm_trt.runtime.generate import Generator
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.timing import StageClock

# Positions of a prompt that one step may prefill: how long the others wait for it.
CHUNK_TOKENS = 512

# A sequence is passed over by later, shorter ones at most so often.
PATIENCE = 8


class Scheduler:
    """Sequences in flight, in order of arrival.

    A step prefills at most one chunk of one prompt and then decodes all sequences that run, so that a long prompt never
    stops them for longer than a chunk. Of the prompts the one that is done soonest comes first, but none is passed over
    more than PATIENCE times in a row. A sequence takes its slot with its first chunk: it then finds the beginnings that
    those before it have left.
    """

    def __init__(
        self, generator: Generator, chunk_tokens: int = CHUNK_TOKENS, now: Callable[[], float] = monotonic
    ) -> None:
        self._generator, self._chunk, self.now = generator, chunk_tokens, now
        # Called between chunk and decode step: a first token is told before others' next ones are computed.
        self.prefilled: Callable[[], None] = lambda: None
        self.in_flight: list[Generation] = []  # to be read only

    def submit(self, request: Request, clock: StageClock | None = None) -> Generation:
        """The sequence, which waits for steps.

        Raises:
            PromptError: the prompt is empty, longer than the cache, or holds ids that the model does not have.
        """
        sequence = self._generator.open(request, StageClock() if clock is None else clock)
        self.in_flight.append(sequence)
        return sequence

    def cancel(self, sequence: Generation) -> None:
        """Ends a sequence that nobody waits for any more."""
        with self._generator.engine.in_use:
            self._generator.end(sequence, "cancelled")
            self.in_flight = [one for one in self.in_flight if one.phase is not Phase.ENDED]

    def step(self, budget: int | None = None) -> None:
        """One chunk of prefill at most, then one decode step of all that run.

        Args:
            budget: positions that the chunk may have; None: as many as a chunk has.
        """
        budget = self._chunk if budget is None else budget
        with self._generator.engine.in_use:
            self._end_late()
            self._generator.pictures.work()
            if (sequence := self._to_prefill(budget)) is not None:
                self._generator.prefill(sequence, budget)
                self.prefilled()
            if running := self.sequences(Phase.DECODE):
                self._generator.decode(running)
            self._generator.slots.pack()
            if not running and sequence is None and self.in_flight:
                self._generator.pictures.wait([one.asked for one in self.in_flight], seconds=0.1)
            self.in_flight = [one for one in self.in_flight if one.phase is not Phase.ENDED]

    def sequences(self, *phases: Phase) -> list[Generation]:
        """Those in flight that are in one of the phases, in order of arrival."""
        return [one for one in self.in_flight if one.phase in phases]

    def _to_prefill(self, budget: int) -> Generation | None:
        """Whose chunk comes next: the first that was passed over often enough, else the shortest."""
        ready = [one for one in self.sequences(Phase.WAITING, Phase.PREFILL) if self._can_begin(one)]
        if not ready:
            return None
        overdue = [one for one in ready if one.passed_over >= PATIENCE]
        chosen = overdue[0] if overdue else min(ready, key=lambda one: -(-one.unfilled // budget))
        for earlier in ready[: ready.index(chosen)]:
            earlier.passed_over += 1
        chosen.passed_over = 0
        return chosen

    def _can_begin(self, sequence: Generation) -> bool:
        return sequence.phase is Phase.PREFILL or (sequence.asked.done() and self._generator.slots.free > 0)

    def _end_late(self) -> None:
        now = self.now()
        for one in self.in_flight:
            if one.request.deadline is not None and one.request.deadline <= now:
                late = DeadlineError("the answer was not complete in the time it was given; ask for less, or later")
                self._generator.end(one, "error", late)
