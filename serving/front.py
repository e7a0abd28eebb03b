"""The outermost middleware: numbers every request, lets it in or not, and tells logs, metrics, traces how it ended."""

from contextlib import ExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlm_trt.serving.errors import ApiError, fault
from vlm_trt.serving.exchange import Exchange
from vlm_trt.serving.logs import log_exchange, log_failure
from vlm_trt.serving.replies import reply
from vlm_trt.serving.site import Site

NUMBER_HEADER = "X-Request-Id"
# Asked every few seconds by machines, and not worth a line each.
_QUIET = ("/health", "/health/live", "/health/ready", "/metrics")
_GIVEN_UP = ("client_left", "not_read")  # counted as cancelled, not as refused


class Front:
    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app, self._site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange: Exchange = scope.setdefault("state", {}).setdefault("exchange", Exchange(scope["method"]))

        async def numbered(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[NUMBER_HEADER] = exchange.number
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        span = self._site.spans.begin(f"{scope['method']} {_route(scope)}", Headers(scope=scope))
        try:
            await self._answered(scope, receive, numbered, exchange)
        finally:
            self._tell(exchange, _route(scope))
            self._site.spans.end(span, exchange)

    async def _answered(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        try:
            with ExitStack() as room:
                if scope["method"] == "POST":
                    room.enter_context(self._site.lifecycle.request())
                await self._app(scope, receive, send)
        except ClientDisconnect:  # before its body was here
            exchange.reason = "client_left"
            self._site.metrics.cancelled.labels("", "receiving").inc()
        except Exception as error:
            if not isinstance(error, ApiError):
                log_failure(exchange, error)
                error = fault(exchange.number)
            exchange.reason = error.code
            if not exchange.status:
                await reply(error, exchange)(scope, receive, send)

    def _tell(self, exchange: Exchange, route: str) -> None:
        if exchange.reason is not None and exchange.reason not in _GIVEN_UP:
            self._site.metrics.rejected.labels(exchange.reason).inc()
        if route not in _QUIET:
            log_exchange(exchange, route)


def _route(scope: Scope) -> str:
    """As the application writes its path: what a client wrote may be anything."""
    path = str(getattr(scope.get("route"), "path", scope["path"]))
    return path if any(path == getattr(route, "path", None) for route in scope["app"].routes) else "unmatched"
