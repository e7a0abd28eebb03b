"""One engine of a fleet: the whole application over it, asked in place of HTTP through a method."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.fleet.app_args import AppArgs
from vlm_trt.runtime.choice import choose
from vlm_trt.runtime.loop import EngineLoop, State
from vlm_trt.serving.app import make_app
from vlm_trt.serving.exchange import Exchange
from vlm_trt.serving.lifecycle import Health
from vlm_trt.serving.logs import log_to
from vlm_trt.serving.services import Services
from vlm_trt.serving.site import Offered
from vlm_trt.serving.turn import turns

# Messages of an answer that lie ready before anybody takes them.
_AHEAD = 64
_CLOSE_S = 5.0


class EngineReplica:
    """Loads a bundle on the machine that Ray chose for it."""

    def __init__(self, name: str, told: dict[str, Any]) -> None:
        """
        Args:
            name: of the model.
            told: AppArgs, written.
        Raises:
            VlmTrtError: the bundle is not on this machine, or cannot be used there.
        """
        args = AppArgs.read(told)
        log_to()
        chosen = choose(
            args.folder(name),
            precision=args.precision,
            backend=args.backend,
            threads=args.threads,
            allow_unverified=args.unverified,
        )
        settings = args.server()
        self._loop = EngineLoop(chosen.load(), settings.max_waiting)
        self._loop.start()
        self._services = Services({name: self._loop}, settings)
        self._app = make_app(self._services, turns(self._services))

    async def answer(self, key: str, route: str, body: bytes, number: str) -> AsyncIterator[Message]:
        """What the application sends, message by message.

        Args:
            key: of what the prompt begins with; for whoever chooses the engine.
            route: of the kind of request.
            body: as it came.
            number: of the request, as the client is told it.
        """
        async for message in answered(self._app, asked(route, body, number), body):
            yield message

    async def offered(self) -> Offered:
        """The model."""
        return (await self._services.offered())[0]

    async def state(self) -> State:
        return self._loop.state()

    async def metrics_page(self) -> bytes:
        return await self._services.metrics_page()

    async def check_health(self) -> None:
        """Asked by Ray, which replaces an engine that raises three times.

        Raises:
            VlmTrtError: the engine has ended, or no step of it has finished for long while work waits.
        """
        if (health := self._services.lifecycle.health()) in (Health.DEAD, Health.STUCK):
            raise VlmTrtError(f"the engine is {health}; the log of this replica tells why")

    def __del__(self) -> None:
        """Called by Ray once nothing is asked any more."""
        with suppress(AttributeError):  # it was never loaded
            self._loop.close(_CLOSE_S)


def asked(route: str, body: bytes, number: str) -> Scope:
    """A request as a server would have it from its client."""
    exchange = Exchange("POST", number)
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "server": None,
        "client": None,
        "state": {"exchange": exchange},
    }


async def answered(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """What an application sends for a request; left early, it is told that the client has left."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue(_AHEAD)
    incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    left = asyncio.Event()

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            if not left.is_set():
                await sent.put(None)

    work = asyncio.ensure_future(run())
    try:
        while (message := await sent.get()) is not None:
            yield message
        await work
    finally:
        left.set()
        work.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await work
