"""An answer on its way: the events of one request, from the engine's thread to the task that sends them on."""

import asyncio
from collections import deque
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import NamedTuple, Self

from vlm_trt.runtime.loop import EngineLoop, Event, Piece
from vlm_trt.runtime.requests import Request
from vlm_trt.serving.errors import ApiError

# Pieces that may lie unread. More, and the first of them for long, and nobody reads: the engine works for nothing.
MOST_UNREAD = 64


class Told(NamedTuple):
    """An event, and when the engine told it, on `time.monotonic`."""

    at: float
    event: Event


class Answering:
    """Submits a request when it is entered and gives it up when it is left before its end. One task reads it."""

    def __init__(self, engine: EngineLoop, request: Request, unread: asyncio.Event, patience_s: float) -> None:
        """
        Args:
            engine: of the model.
            request: what to ask it.
            unread: set when nobody reads.
            patience_s: how long more than MOST_UNREAD pieces may lie unread.
        """
        self._engine, self._request = engine, request
        self._unread, self._patience_s = unread, patience_s
        self._told: deque[Told] = deque()
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ended = False

    async def __aenter__(self) -> Self:
        """
        Raises:
            BusyError: the engine has no room, or takes nothing any more.
        """
        self._ticket = self._engine.submit(self._request, self._listen)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self._engine.cancel(self._ticket)

    async def next(self) -> Told:
        """The next event, in their order. Behind an answer or an exception comes nothing."""
        assert not self._ended
        while not self._told:
            self._news.clear()
            await self._news.wait()
        told = self._told.popleft()
        self._ended = not isinstance(told.event, Piece)
        return told

    def fail(self, error: ApiError) -> None:
        """Ends it with an error, whatever the engine still has to say. In the task's thread."""
        if not self._ended:
            self._engine.cancel(self._ticket)
            self._told.clear()
            self._told.append(Told(monotonic(), error))
            self._news.set()

    def _listen(self, event: Event) -> None:
        """In the engine's thread."""
        self._told.append(Told(monotonic(), event))
        with suppress(RuntimeError):  # the server has ended
            self._loop.call_soon_threadsafe(self._arrived)

    def _arrived(self) -> None:
        self._news.set()
        if len(self._told) > MOST_UNREAD and monotonic() - self._told[0].at > self._patience_s:
            self._unread.set()
