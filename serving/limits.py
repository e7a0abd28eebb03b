"""How much comes in at once: requests, bodies, decoded pixels. All of it counted, none of it trusted."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_trt.serving.errors import ApiError, busy
from vlm_trt.serving.exchange import exchange_of
from vlm_trt.serving.replies import reply

_JSON = "application/json"


@dataclass
class Held:
    """What the bodies of all requests hold together, from their first byte to the last of the answer."""

    most_bytes: int
    bytes: int = 0


class Bodies:
    """Middleware: bounds what bodies may hold, each and all together, while they come in."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, held: Held) -> None:
        self._app, self._most, self._held = app, max_body_bytes, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := self._refusal(Headers(scope=scope))) is not None:
            await reply(refusal, exchange_of(scope))(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            size = len(message.get("body", b""))
            taken += size
            self._held.bytes += size
            if taken > self._most:
                raise self._too_large()
            if self._held.bytes > self._held.most_bytes:
                raise busy("the server holds as many bodies as it may; ask again later", "memory_full")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held.bytes -= taken

    def _refusal(self, headers: Headers) -> ApiError | None:
        """What can be said before the body comes."""
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 18:
            return ApiError(400, "Content-Length is no number of bytes; send the body's size", "invalid_header")
        return self._too_large() if int(length) > self._most else None

    def _too_large(self) -> ApiError:
        most = self._most >> 20
        return ApiError(413, f"the body has more than {most} MiB; send smaller or fewer pictures", "body_too_large")


def require_json(headers: Headers) -> None:
    """A body is JSON and says so: then no form of a foreign page, to which a browser was led, can ask for anything.

    Raises:
        ApiError: it says something else, or is compressed.
    """
    code = "unsupported_media_type"
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body is compressed; send it as it is", code)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
        raise ApiError(415, f"the body does not call itself JSON; send the header Content-Type: {_JSON}", code)


async def body_of(request: Request, timeout_s: float) -> bytes:
    """The body of a request for an answer, once it is here.

    Raises:
        ApiError: it is too large, too slow, or not JSON.
    """
    require_json(request.headers)
    try:
        async with asyncio.timeout(timeout_s):
            return b"".join([chunk async for chunk in request.stream()])
    except TimeoutError:
        raise ApiError(408, "the body took too long to come; send it faster, or less of it", "timed_out") from None


class Budget:
    """So much of something at once, handed out in the order it was asked for."""

    def __init__(self, total: int) -> None:
        self._total, self._free = total, total
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, amount: int) -> AsyncIterator[None]:
        """Waits until that much is free, or everything where more was asked for than there is, and holds it."""
        amount = min(amount, self._total)
        await self._take(amount)
        try:
            yield
        finally:
            self._give(amount)

    async def _take(self, amount: int) -> None:
        if not self._waiting and amount <= self._free:
            self._free -= amount
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give(amount)  # it was handed over at the same moment
            else:
                self._waiting = deque(one for one in self._waiting if one[1] is not turn)
                self._hand_out()
            raise

    def _give(self, amount: int) -> None:
        self._free += amount
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            amount, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= amount
                turn.set_result(None)
