"""One request on its way: told of by the threads that work on it, answered by the one that sends."""

from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple
from uuid import uuid4

from vlm_trt.runtime.loop import Event, Ticket
from vlm_trt.triton_backend.asking import Asked


class Told(NamedTuple):
    """An event, and when it came, on `time.monotonic`."""

    at: float
    event: Event


class Turn:
    """Its fields are grouped by the thread that writes them; `told` is anybody's."""

    def __init__(self, sender: Any, news: Callable[["Turn"], None]) -> None:
        """
        Args:
            sender: Triton's, of this request.
            news: called where there is something to send; from any thread.
        """
        self.sender, self._news = sender, news
        self.number = uuid4().hex  # what a failure of ours is told under, to the client and in the log
        self.started = monotonic()
        self.told = list[Told]()
        # Of who takes it in; and of who sends, which lets go of it at the end, since it may hold pictures.
        self.asked: Asked | None = None
        # Of who prepares it.
        self.ticket: Ticket | None = None
        self.prompt_tokens = 0
        self.pictures, self.decoding_s = 0, 0.0
        # Of who sends.
        self.last_piece_at: float | None = None
        self.ended = False

    def tell(self, event: Event) -> None:
        """In any thread; it returns at once."""
        self.told.append(Told(monotonic(), event))
        self._news(self)

    @property
    def stage(self) -> str:
        """How far it has come, in the words of the HTTP server."""
        if self.last_piece_at is not None:
            return "answering"
        return "preparing" if self.ticket is None else "waiting"
