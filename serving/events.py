"""Server-sent events, written by hand: one `data:` line a document, and `[DONE]` behind the last."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.types import Receive, Scope, Send

from vlm_trt.serving.replies import as_json

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect them
]
ABORT = "vlm_trt.abort"  # of an ASGI scope's extensions: its "call" drops the connection
DONE = b"data: [DONE]\n\n"


def event(document: object) -> bytes:
    return b"data: " + as_json(document) + b"\n\n"


async def send_events(events: AsyncIterator[bytes], send: Send) -> None:
    """An answer of status 200 whose body is those events, each sent as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    async for one in events:
        await send({"type": "http.response.body", "body": one, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def ended_first(work: Coroutine[Any, Any, None], *ends: Coroutine[Any, Any, Any]) -> bool:
    """Whether the work came to its end before any of the ends did, which then ended it.

    Raises:
        Exception: of the work.
    """
    tasks = [asyncio.ensure_future(one) for one in (work, *ends)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
            return True
        return False
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has left. What it may still send of its body is thrown away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def abort(scope: Scope) -> None:
    """Drops the connection with what lies unsent in it: whoever does not read would never let it end."""
    if (drop := scope.get("extensions", {}).get(ABORT)) is not None:
        drop["call"]()
