"""An answer that an engine elsewhere gives, passed on as it comes; asked for again where it was lost before a word."""

from contextlib import suppress
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlm_trt.serving.errors import ApiError, busy
from vlm_trt.serving.events import disconnected, ended_first, event
from vlm_trt.serving.exchange import Exchange
from vlm_trt.serving.logs import log
from vlm_trt.serving.metrics import Metrics
from vlm_trt.serving.replies import reply

# An engine that ends takes what it works on with it. A request that ends engines itself must not end many.
_ATTEMPTS = 2
# What a handle raises where the engine, or the way to it, is lost.
LOST = (RayError, RayServeException)


class Relayed(Response):
    """The answer to one request."""

    def __init__(
        self, engines: DeploymentHandle[Any], call: tuple[str, str, bytes], exchange: Exchange, metrics: Metrics
    ) -> None:
        """
        Args:
            engines: of the model.
            call: key, route and body, as `EngineReplica.answer` takes them.
            exchange: of the request.
            metrics: count those whose client leaves.
        """
        self._engines, self._call, self._exchange, self._metrics = engines, call, exchange, metrics
        self._streams = False
        self._started = False
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if await ended_first(self._relayed(scope, receive, send), disconnected(receive)):
            return
        self._exchange.reason = "client_left"
        self._metrics.cancelled.labels(self._exchange.model or "", "relaying").inc()

    async def _relayed(self, scope: Scope, receive: Receive, send: Send) -> None:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self._passed_on(send)
                return
            except BackPressureError:
                failed = busy("as many requests wait as may; ask again later", "queue_full")
                break
            except LOST as error:
                log.warning(
                    "engine lost", extra={"fields": {"id": self._exchange.number, "attempt": attempt}}, exc_info=error
                )
                failed = busy("the engine of this answer was lost; ask again", "engine_lost")
                if self._started:
                    break
        await self._failed(failed, scope, receive, send)

    async def _passed_on(self, send: Send) -> None:
        """
        Raises:
            RayError, RayServeException: no engine took it, or its engine was lost.
        """
        stream = self._engines.options(stream=True).answer.remote(*self._call, self._exchange.number)
        try:
            async for message in stream:
                if message["type"] == "http.response.start":
                    self._streams = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                elif self._streams and self._exchange.first_token_ms is None:
                    self._first_token()
                self._started = True
                await send(message)
        except BaseException:
            with suppress(*LOST):
                stream.cancel()
            raise

    def _first_token(self) -> None:
        """Measured here too: what waits for an engine waits where the engine does not see it."""
        self._exchange.first_token_ms = self._exchange.elapsed_s * 1000
        self._metrics.first_token.labels(self._exchange.model or "").observe(self._exchange.elapsed_s)

    async def _failed(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        """As `serving/turn.py` ends an answer that fails: with a status, or as the last event of a stream."""
        self._exchange.reason = error.code
        if not self._started:
            await reply(error, self._exchange)(scope, receive, send)
            return
        last = event(error.body()) if self._streams else b""
        await send({"type": "http.response.body", "body": last, "more_body": False})
