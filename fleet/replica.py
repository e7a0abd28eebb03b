"""One replica: who runs next, as `runtime/scheduler.py` decides it, with a count in place of every computation.

A test steps both beside each other.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from vlm_trt.fleet.costs import CHUNK_TOKENS, Costs
from vlm_trt.fleet.workload import Arrival

# As the runtime has them: `scheduler.py`, `features.py` and `slots.py`.
PATIENCE = 8
MAX_PICTURES = 64
WORTH_A_COPY = 16


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What every replica of a fleet is."""

    costs: Costs
    slots: int  # sequences at once
    max_waiting: int = 64  # requests that may wait for a slot; more are refused
    chunk_tokens: int = CHUNK_TOKENS

    @property
    def room(self) -> int:
        """Requests that it holds at most."""
        return self.slots + self.max_waiting


@dataclass(slots=True, eq=False)
class Slot:
    """A row of the cache, and what its positions hold."""

    conversation: int | None = None
    tokens: int = 0
    busy: bool = False
    last_use: int = 0


@dataclass(slots=True, eq=False)
class Sequence:
    """One request on its way through a replica."""

    number: int
    asked: Arrival
    unfilled: int  # positions of its prompt that are still to be prefilled
    left: int  # tokens of its answer that are still to come
    seen: bool = True  # whether the features of its pictures are there
    slot: Slot | None = None  # from its first chunk to its end
    passed_over: int = 0  # how often a later one was prefilled first
    reused_tokens: int = 0  # positions of its prompt that were in the cache already


@dataclass(slots=True)
class Work:
    """What one step does."""

    taken: int  # requests that are taken in before it
    pictures: int = 0  # that are encoded
    prefilled: Sequence | None = None  # whose chunk it is
    chunk_tokens: int = 0
    decoding: int = 0  # sequences that gain a token each
    repeated: int = 1  # decode steps of them, one after the other
    ended: list[Sequence] = field(default_factory=list)


class Replica:
    """See above. `submit` requests, and `work` step by step."""

    def __init__(self, kind: Kind) -> None:
        self._chunk = kind.chunk_tokens
        self._inbox: list[Sequence] = []  # taken in with the next step
        self._in_flight: list[Sequence] = []  # in order of arrival
        self._running: list[Sequence] = []  # those that decode
        self._unseen: deque[Sequence] = deque()  # whose pictures are to be encoded, in order of arrival
        self._known: OrderedDict[int, int] = OrderedDict()  # pictures whose features are kept, by conversation
        self._slots = [Slot() for _ in range(kind.slots)]
        self._free, self._uses = kind.slots, 0

    @property
    def load(self) -> int:
        """Requests that it has."""
        return len(self._in_flight) + len(self._inbox)

    @property
    def has(self) -> list[Sequence]:
        """All that it has, in order of arrival."""
        return [*self._in_flight, *self._inbox]

    def submit(self, number: int, asked: Arrival) -> None:
        """Hands it a request, which waits for the next step."""
        self._inbox.append(Sequence(number, asked, asked.prompt_tokens, asked.answer_tokens))

    def work(self, most_repeated: int = 1) -> Work:
        """One step: what came in, one request's pictures, one chunk of one prompt, a token of all that run.

        Args:
            most_repeated: decode steps at once, where there is nothing else to do and none of them ends a sequence.
        """
        work = Work(taken=len(self._inbox))
        if self._inbox:
            self._take_in()
        if self._unseen:
            work.pictures = self._encode()
        if (chosen := self._to_prefill()) is not None:
            self._prefill(chosen, work)
        if self._running:
            work.decoding = len(self._running)
            if chosen is None and not (work.pictures or self._unseen):
                work.repeated = max(1, min(most_repeated, min(one.left for one in self._running) - 1))
            self._decode(work)
        if work.ended:
            self._in_flight = [one for one in self._in_flight if one.left]
        return work

    def undo(self, steps: int) -> None:
        """Takes back so many of the repeated decode steps of the last `work`: a request has come before them."""
        for one in self._running:
            one.left += steps

    def _take_in(self) -> None:
        for one in self._inbox:
            self._in_flight.append(one)
            if not one.asked.pictures or self._knows(one.asked):
                continue
            one.seen = False
            self._unseen.append(one)
        self._inbox = []

    def _knows(self, asked: Arrival) -> bool:
        """Whether the features of its pictures are there."""
        if asked.conversation is None or asked.conversation not in self._known:
            return False
        self._known.move_to_end(asked.conversation)
        return True

    def _encode(self) -> int:
        """Pictures that are encoded: those of the request that has waited longest."""
        first = self._unseen.popleft()
        first.seen = True
        asked = first.asked
        if self._knows(asked):  # by now
            return 0
        if asked.conversation is not None:
            self._known[asked.conversation] = asked.pictures
            while len(self._known) > 1 and sum(self._known.values()) > MAX_PICTURES:
                self._known.popitem(last=False)
        return asked.pictures

    def _to_prefill(self) -> Sequence | None:
        """Whose chunk comes next: the first that was passed over often enough, else the shortest."""
        ready = [
            one for one in self._in_flight if one.unfilled and (one.slot is not None or (one.seen and self._free > 0))
        ]
        if not ready:
            return None
        overdue = next((one for one in ready if one.passed_over >= PATIENCE), None)
        chosen = overdue or min(ready, key=lambda one: -(-one.unfilled // self._chunk))
        for earlier in ready:
            if earlier is chosen:
                break
            earlier.passed_over += 1
        chosen.passed_over = 0
        return chosen

    def _prefill(self, one: Sequence, work: Work) -> None:
        if one.slot is None:
            one.slot = self._acquire(one.asked)
            one.reused_tokens = one.slot.tokens
            one.unfilled -= one.reused_tokens
        work.prefilled, work.chunk_tokens = one, min(self._chunk, one.unfilled)
        one.unfilled -= work.chunk_tokens
        one.slot.tokens += work.chunk_tokens
        if not one.unfilled:
            one.left -= 1
            self._running.append(one)
            self._end([one], work)

    def _decode(self, work: Work) -> None:
        for one in self._running:
            one.left -= work.repeated
        self._end(self._running, work)

    def _end(self, sequences: list[Sequence], work: Work) -> None:
        """Frees the slots of those of them that are answered."""
        ended = [one for one in sequences if not one.left]
        if not ended:
            return
        work.ended += ended
        self._running = [one for one in self._running if one.left]
        for one in ended:
            assert one.slot is not None
            # Of an answer the last token is never computed on.
            one.slot.tokens = one.asked.prompt_tokens + one.asked.answer_tokens - 1
            one.slot.busy = False
            self._free += 1

    def _acquire(self, asked: Arrival) -> Slot:
        """A free slot with the longest beginning that any slot holds, as `runtime/slots.py` chooses and copies it."""
        free = [slot for slot in self._slots if not slot.busy]
        source = max(self._slots, key=lambda slot: (_shared(slot, asked), not slot.busy))
        shared = _shared(source, asked)
        if not source.busy and (len(free) == 1 or 2 * shared > source.tokens):
            slot = source
        else:
            slot = min((one for one in free if one is not source or not shared), key=lambda one: one.last_use)
            if shared - _shared(slot, asked) < WORTH_A_COPY:
                shared = _shared(slot, asked)
        self._uses, self._free = self._uses + 1, self._free - 1
        slot.conversation, slot.tokens, slot.busy, slot.last_use = asked.conversation, shared, True, self._uses
        return slot


def _shared(slot: Slot, asked: Arrival) -> int:
    """Positions of a prompt that a slot holds already; one is left to prefill, since its logits come from there."""
    if asked.conversation is None or slot.conversation != asked.conversation:
        return 0
    return min(asked.shared_tokens, slot.tokens, asked.prompt_tokens - 1)
