"""One connection: as uvicorn has it, with an end to waiting for requests that never come whole.

uvicorn bounds neither the time nor the size of what comes before a body: half-sent requests would stay for ever.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from vlm_trt.serving.errors import ApiError
from vlm_trt.serving.events import ABORT
from vlm_trt.serving.replies import as_json

_MOST_HEADER_BYTES = 64 << 10
_BODY_GRACE_S = 5  # beyond the time that the request's own reader gives a body


class Connection(HttpToolsProtocol):
    """`limited` makes the class that a server uses."""

    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = 0  # of the request that is coming in, 0 before it; None behind its header

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_within(self.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._header_bytes is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._header_bytes is not None and self._header_bytes > _MOST_HEADER_BYTES:
            self._refuse(431, "the request's header is too long; send a shorter one", "header_too_large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # Whoever gives up an answer may have to drop the connection with what lies unsent in it.
        self.scope["extensions"] = {ABORT: {"call": self.transport.abort}}
        self._header_bytes = self._header_bytes or 1
        self._expect_within(self.header_timeout_s)

    def on_headers_complete(self) -> None:
        self._header_bytes = None
        self._expect_within(self.body_timeout_s + _BODY_GRACE_S)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._header_bytes = 0
        self._expect_nothing()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "the request is no HTTP that can be read; send one that is", "invalid_request")

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self._late)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self) -> None:
        if self.flow.read_paused:  # it comes faster than we take it, or waits behind an answer
            self._expect_within(self.body_timeout_s)
        else:
            self._refuse(408, "the request took too long to come; send it faster", "timed_out")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Closes the connection; says why, unless nothing was asked or another answer would be torn."""
        self._expect_nothing()
        if self.transport.is_closing():
            return
        if self._header_bytes is None:
            may_say = not self.cycle.response_started
        else:
            may_say = self._header_bytes > 0 and (self.cycle is None or self.cycle.response_complete)
        if may_say:
            body = as_json(ApiError(status, message, code).body())
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


def limited(header_timeout_s: float, body_timeout_s: float) -> type[Connection]:
    """The class of connections with those limits; uvicorn makes them without arguments of ours."""
    limits = {"header_timeout_s": header_timeout_s, "body_timeout_s": body_timeout_s}
    return type("LimitedConnection", (Connection,), limits)
