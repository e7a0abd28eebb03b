"""From a body that has come in to the last byte of its answer; given up when nobody waits for it any more."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from vlm_trt.runtime.loop import Piece
from vlm_trt.runtime.model import Answer
from vlm_trt.serving.answering import Answering, Told
from vlm_trt.serving.documents import StreamedForm
from vlm_trt.serving.errors import ApiError, is_fault, told
from vlm_trt.serving.events import DONE, abort, disconnected, ended_first, event, send_events
from vlm_trt.serving.exchange import Exchange, exchange_of
from vlm_trt.serving.limits import body_of
from vlm_trt.serving.logs import log_failure
from vlm_trt.serving.preparing import Kind, prepared
from vlm_trt.serving.replies import Json, reply
from vlm_trt.serving.requests import Sampled
from vlm_trt.serving.services import Services

A = TypeVar("A", bound=Sampled)


class Turn(Response, Generic[A]):
    """The answer to one request."""

    def __init__(self, kind: Kind[A], services: Services, exchange: Exchange, body: bytes) -> None:
        self._kind, self._services, self._exchange, self._body = kind, services, exchange, body
        self._stage = "preparing"  # then "waiting" for the first token, then "answering"
        self._unread = asyncio.Event()
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._answer(scope, receive, send)
        if await ended_first(answer, disconnected(receive), self._unread.wait()):
            return
        self._exchange.reason = "not_read" if self._unread.is_set() else "client_left"
        self._services.metrics.cancelled.labels(self._exchange.model or "", self._stage).inc()
        if self._unread.is_set():
            abort(scope)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the answer is sent, or what stands in its place."""
        try:
            ready = await prepared(self._kind, self._taken_body(), self._services, self._exchange)
            form = self._kind.form(ready.asked, ready.served, self._exchange.number)
            patience_s = self._services.settings.reader_patience_s
            self._stage = "waiting"
            async with Answering(ready.served.loop, ready.request, self._unread, patience_s) as answering:
                with self._services.lifecycle.answering(answering):
                    first = await self._next(answering)  # so that what ends it before has a status of its own
                    self._stage = "answering"
                    if ready.asked.stream:
                        assert isinstance(form, StreamedForm), "what is no stream is refused when it is read"
                        await send_events(self._events(answering, first, form, ready.asked.usage_at_the_end), send)
                        return
                    told = first
                    while isinstance(told.event, Piece):
                        told = await self._next(answering, told)
                    assert isinstance(told.event, Answer)
                    response: Response = Json(form.whole(told.event))
        except Exception as error:
            response = reply(self._error(error), self._exchange)
        await response(scope, receive, send)

    def _taken_body(self) -> bytes:
        """The body, which nobody holds any longer than it is read: it may be the pictures once more."""
        body, self._body = self._body, b""
        return body

    async def _events(
        self, answering: Answering, told: Told, form: StreamedForm, with_usage: bool
    ) -> AsyncIterator[bytes]:
        """The answer as a stream; what ends it early is its last event, and no DONE comes behind it."""
        try:
            yield event(form.first())
            sent = 0
            while isinstance(told.event, Piece):
                yield event(form.piece(told.event.text, told.event.tokens))
                sent += len(told.event.tokens)
                told = await self._next(answering, told)
            assert isinstance(told.event, Answer)
            yield event(form.last(told.event, told.event.tokens[sent:]))
            if with_usage:
                yield event(form.usage(told.event))
            yield DONE
        except Exception as error:
            failed = self._error(error)
            self._exchange.reason = failed.code
            yield event(failed.body())

    async def _next(self, answering: Answering, before: Told | None = None) -> Told:
        """The next event, measured.

        Raises:
            Exception: what ended the request.
        """
        new = await answering.next()
        if isinstance(new.event, Exception):
            raise new.event
        exchange, metrics = self._exchange, self._services.metrics
        assert exchange.model is not None
        if before is None:
            exchange.first_token_ms = (new.at - exchange.started) * 1000
            metrics.first_token.labels(exchange.model).observe(new.at - exchange.started)
        elif isinstance(new.event, Piece):
            metrics.between_tokens.labels(exchange.model).observe(new.at - before.at)
        if isinstance(new.event, Answer):
            exchange.ended_with(new.event)
            metrics.answer(exchange.model, new.event, new.at - exchange.started)
        return new

    def _error(self, error: Exception) -> ApiError:
        if is_fault(error):
            log_failure(self._exchange, error)
        return told(error, self._exchange.number, self._kind.prompt_param)


def turns(services: Services) -> Callable[[Kind[Any]], Callable[[HttpRequest], Awaitable[Response]]]:
    """How a kind of request is answered by the engines of this process."""

    def asking(kind: Kind[Any]) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def ask(request: HttpRequest) -> Response:
            body = await body_of(request, services.settings.body_timeout_s)
            return Turn(kind, services, exchange_of(request.scope), body)

        return ask

    return asking
