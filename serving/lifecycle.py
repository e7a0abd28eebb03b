"""Whether a server takes requests: from its start over draining to its end, and the truth about its engines."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Protocol

from vlm_trt.runtime.loop import State
from vlm_trt.serving.answering import Answering
from vlm_trt.serving.errors import busy
from vlm_trt.serving.logs import log
from vlm_trt.serving.settings import Settings

_RETRY_DRAINING_S = 5  # by then another server is likely to be there


class Health(StrEnum):
    """In one word."""

    READY = "ready"
    DRAINING = "draining"
    STUCK = "stuck"  # work waits, and no step has finished for long
    DEAD = "dead"  # an engine's thread has ended


class Watched(Protocol):
    """An engine, or several under one name, as it is looked after."""

    def state(self) -> State:
        """What it is doing, told at once and from any thread."""


class Lifecycle:
    """One for a server. All of it happens in the event loop's thread."""

    def __init__(self, engines: Mapping[str, Watched], most_in_flight: int, settings: Settings) -> None:
        """
        Args:
            engines: by the names of their models.
            most_in_flight: requests that may be in it at once, those that wait among them.
            settings: of the server.
        """
        self._engines, self._most, self._settings = engines, most_in_flight, settings
        self._in_flight = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._answering: set[Answering] = set()
        self.draining = False

    def health(self) -> Health:
        states = [engine.state() for engine in self._engines.values()]
        if not all(state.alive for state in states):
            return Health.DEAD
        if self.draining:
            return Health.DRAINING
        stuck = any(state.stuck_s > self._settings.stuck_after_s for state in states)
        return Health.STUCK if stuck else Health.READY

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request for an answer, before its body is read.

        Raises:
            ApiError: the server takes none, or has as many as it may.
        """
        if self.draining:
            raise busy("the server is shutting down; ask another one", "draining", _RETRY_DRAINING_S)
        if self._in_flight >= self._most:
            raise busy("as many requests wait as may; ask again later", "queue_full")
        self._in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._empty.set()

    @contextmanager
    def answering(self, answering: Answering) -> Iterator[None]:
        """Around an answer on its way, which draining may cut."""
        self._answering.add(answering)
        try:
            yield
        finally:
            self._answering.discard(answering)

    async def drain(self) -> None:
        """Takes nothing new, lets answers end, and cuts those that take too long."""
        self.draining = True
        log.info("draining", extra={"fields": {"in_flight": self._in_flight}})
        await asyncio.sleep(self._settings.drain_delay_s)
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._empty.wait()
        except TimeoutError:
            log.warning("cutting answers", extra={"fields": {"in_flight": self._in_flight}})
            self.cut("the server is shutting down and this answer took too long; ask another server", "draining")

    def cut(self, message: str, code: str) -> None:
        """Ends every answer with an error."""
        for answering in list(self._answering):
            answering.fail(busy(message, code, _RETRY_DRAINING_S))
