"""A thread that owns a model and steps its scheduler; everybody else sends it requests and is told what comes of them.

Nothing but this thread touches engine, cache, slots and sequences. What comes in is a command in a queue; what goes out
is an event to whoever asked.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Lock, Thread
from time import monotonic

from vlm_trt.bundle.errors import BusyError, VlmTrtError
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.model import Answer, VisionLanguageModel
from vlm_trt.runtime.requests import Request, Token
from vlm_trt.runtime.timing import StageClock

# Requests that fail in the engine one after the other, with no answer between them, until it counts as lost.
_FAILURES = 3

log = logging.getLogger("vlm_trt.loop")


@dataclass(frozen=True)
class Piece:
    """What is new of an answer."""

    text: str  # whole characters, and nothing that may be the beginning of a stop string
    tokens: tuple[Token, ...]  # that came since the last piece, where log-probabilities were asked for


# Of these the last two end a request: its answer, or what ended it.
Event = Piece | Answer | Exception
Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Ticket:
    """A request that was taken."""

    number: int


@dataclass(frozen=True)
class State:
    """What the loop is doing, as of its last step."""

    alive: bool  # whether its thread runs
    stuck_s: float  # since it last finished a step while work was waiting; 0 where none is
    waiting: int  # requests without a slot
    running: int  # requests with one
    slots: int
    cached_share: float  # of the cache's positions, held by requests that run
    pictures_waiting: int  # requests whose pictures are not encoded yet


class _Asked:
    """One request in the loop's hands."""

    def __init__(self, ticket: Ticket, request: Request, listen: Listener) -> None:
        self.ticket, self.request, self.listen = ticket, request, listen
        self.clock = StageClock()
        self.sequence: Generation | None = None
        self.shown, self.told = 0, 0  # characters of its text, and tokens, that were sent


class EngineLoop:
    """See above. `start` it, `submit` requests from any thread, `close` it."""

    def __init__(self, model: VisionLanguageModel, max_waiting: int = 64) -> None:
        """
        Args:
            model: nothing else may use it from now on.
            max_waiting: requests that may wait for a slot.
        """
        self.model = model
        self.died: BaseException | None = None  # what ended the thread, if it was not `close`
        self._max_in_flight = model.engine.limits.max_batch + max_waiting
        self._commands: SimpleQueue[_Asked | Ticket | None] = SimpleQueue()
        self._lock = Lock()  # for the next two
        self._in_flight: set[Ticket] = set()
        self._closing = False
        self._empty = Flag()
        self._empty.set()
        self._numbers = count(1)
        self._asked: dict[Ticket, _Asked] = {}  # the thread's own
        self._failures = 0
        self._stepped = monotonic()
        self._idle, self._counted = True, (0, 0, 0.0, 0)
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begins to take requests."""
        self._thread.start()

    def submit(self, request: Request, listen: Listener) -> Ticket:
        """Asks for an answer, from any thread.

        Args:
            request: what `VisionLanguageModel.request` made.
            listen: called in the loop's thread with each event; it must return at once.
        Raises:
            BusyError: as many requests wait as may, or the loop is closing or has died.
        """
        with self._lock:
            if self._closing or self.died is not None:
                raise BusyError("the server is shutting down; ask another one, or this one again when it is back")
            if len(self._in_flight) >= self._max_in_flight:
                raise BusyError(f"{len(self._in_flight)} requests are being answered or wait already; ask again later")
            ticket = Ticket(next(self._numbers))
            self._in_flight.add(ticket)
            self._empty.clear()
            self._commands.put(_Asked(ticket, request, listen))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives up a request, from any thread; nothing more is told of it. One that has ended is no matter."""
        self._commands.put(ticket)

    def state(self) -> State:
        """What the loop is doing, from any thread."""
        waiting, running, cached_share, pictures = self._counted
        busy = bool(self._in_flight) and not self._idle
        return State(
            alive=self._thread.is_alive(),
            stuck_s=monotonic() - self._stepped if busy else 0.0,
            waiting=max(waiting, len(self._in_flight) - running),
            running=running,
            slots=self.model.engine.limits.max_batch,
            cached_share=cached_share,
            pictures_waiting=pictures,
        )

    def close(self, timeout_s: float) -> bool:
        """Takes nothing new and waits for what is in flight; what has not ended by then ends with a BusyError.

        Args:
            timeout_s: seconds to wait.
        Returns:
            Whether all of it ended by itself.
        """
        with self._lock:
            self._closing = True
        ended = self._empty.wait(timeout_s) or self.died is not None
        self._commands.put(None)
        self._thread.join()
        return ended

    def _run(self) -> None:
        try:
            self.model.scheduler.prefilled = self._report
            with self.model.engine.in_use:
                while self._take_commands():
                    self._stepped, self._idle = monotonic(), False
                    if self._asked:
                        self.model.scheduler.step()
                        self._report()
                    self._count()
            self._end_all(BusyError("the server is shutting down; ask another one, or this one again when it is back"))
        except BaseException as error:
            with self._lock:
                self.died = error
            log.exception("the engine's thread has died")
            self._end_all(BusyError("the engine has failed and the server is ending; ask another one"))

    def _take_commands(self) -> bool:
        """Carries out what was asked, waiting for it where there is nothing else to do; False where the loop ends."""
        while True:
            self._idle = not self._asked
            if self._idle:
                self._count()  # what was cancelled is gone
            try:
                command = self._commands.get(block=self._idle)
            except Empty:
                return True
            if command is None:
                return False
            if isinstance(command, Ticket):
                self._cancel(command)
            else:
                self._begin(command)

    def _begin(self, asked: _Asked) -> None:
        try:
            asked.sequence = self.model.scheduler.submit(asked.request, asked.clock)
            self._asked[asked.ticket] = asked
        except Exception as error:  # of this request alone
            self._tell(asked, error)
            self._forget(asked.ticket)

    def _cancel(self, ticket: Ticket) -> None:
        asked = self._asked.pop(ticket, None)
        if asked is not None and asked.sequence is not None:
            self.model.scheduler.cancel(asked.sequence)
        self._forget(ticket)

    def _report(self) -> None:
        """Tells of what the step brought."""
        for asked in list(self._asked.values()):
            sequence = asked.sequence
            assert sequence is not None
            ended = sequence.phase is Phase.ENDED
            # The pieces before its end are those of one that is read as it comes; a token without text is told, too.
            if len(sequence.text) > asked.shown or len(sequence.tokens) > asked.told:
                self._tell(asked, Piece(sequence.text[asked.shown :], tuple(sequence.tokens[asked.told :])))
                asked.shown, asked.told = len(sequence.text), len(sequence.tokens)
            self._require_engine(sequence)
            if ended:
                self._tell(asked, self.model.outcome(sequence))
                del self._asked[asked.ticket]
                self._forget(asked.ticket)

    def _require_engine(self, sequence: Generation) -> None:
        """
        Raises:
            VlmTrtError: request after request failed for no reason of its own, as when a GPU is lost.
        """
        if type(sequence.error) is VlmTrtError:
            self._failures += 1
        elif sequence.phase is Phase.ENDED and sequence.error is None:
            self._failures = 0
        if self._failures >= _FAILURES:
            raise VlmTrtError(f"{_FAILURES} requests in a row failed in the engine") from sequence.error

    def _end_all(self, error: Exception) -> None:
        for asked in list(self._asked.values()):
            if asked.sequence is not None and self.died is None:
                self.model.scheduler.cancel(asked.sequence)
            self._tell(asked, error)
            self._forget(asked.ticket)
        self._asked.clear()
        while not self._commands.empty():
            command = self._commands.get()
            if isinstance(command, _Asked):
                self._tell(command, error)
                self._forget(command.ticket)

    def _tell(self, asked: _Asked, event: Event) -> None:
        try:
            asked.listen(event)
        except Exception:  # whoever listens is no matter of the others
            log.exception("the listener of request %d failed", asked.ticket.number)
            if not isinstance(event, Answer | Exception):
                self.cancel(asked.ticket)

    def _forget(self, ticket: Ticket) -> None:
        with self._lock:
            self._in_flight.discard(ticket)
            if not self._in_flight:
                self._empty.set()

    def _count(self) -> None:
        scheduler, cache = self.model.scheduler, self.model.engine.cache
        running = scheduler.sequences(Phase.PREFILL, Phase.DECODE)
        waiting = scheduler.sequences(Phase.WAITING)
        held = sum(cache.lengths[one.place.index] for one in running)
        share = held / (len(cache.lengths) * cache.max_seq_tokens)
        self._counted = len(waiting), len(running), share, sum(not one.asked.done() for one in waiting)
