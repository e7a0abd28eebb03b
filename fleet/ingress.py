"""The front door of a fleet: keys, limits and routes as of one server, the answers from engines elsewhere."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from vlm_trt.fleet.pages import merged
from vlm_trt.fleet.prefix import prefix_key
from vlm_trt.fleet.relay import LOST, Relayed
from vlm_trt.runtime.loop import State
from vlm_trt.serving.app import make_app
from vlm_trt.serving.errors import no_such_model
from vlm_trt.serving.exchange import exchange_of
from vlm_trt.serving.lifecycle import Lifecycle
from vlm_trt.serving.limits import Held, body_of
from vlm_trt.serving.logs import UnknownFields, log_to
from vlm_trt.serving.metrics import Metrics
from vlm_trt.serving.preparing import Kind
from vlm_trt.serving.settings import Settings
from vlm_trt.serving.site import Offered
from vlm_trt.serving.spans import Spans

_LOOK_S = 1.0  # between two looks at the engines
_ANSWER_S = 2.0  # in which they say how they are, or count as gone
_NONE = State(False, 0.0, 0, 0, 0, 0.0, 0)


class Engines:
    """All engines of a model, as one that is looked after: what they said last."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self.handle = handle
        self._state = _NONE
        self.offered: Offered | None = None  # once one has said so

    def state(self) -> State:
        return self._state

    async def look(self) -> None:
        """Asks all of them how they are."""
        states = [one for one in await self.each("state") if isinstance(one, State) and one.alive]
        self._state = together(states) if states else _NONE
        if states and self.offered is None:
            self.offered = next((one for one in await self.each("offered") if isinstance(one, Offered)), None)

    async def each(self, method: str) -> list[Any]:
        """What a method of every engine returns; nothing where none is there, or they do not answer."""
        with suppress(TimeoutError, *LOST):
            asked = self.handle.broadcast(method)
            return list(await asked.results_async(timeout_s=_ANSWER_S, return_exceptions=True))
        return []


def together(states: Sequence[State]) -> State:
    """Several engines as one: stuck where the freest of them is."""
    slots = sum(one.slots for one in states)
    return State(
        alive=True,
        stuck_s=min(one.stuck_s for one in states),
        waiting=sum(one.waiting for one in states),
        running=sum(one.running for one in states),
        slots=slots,
        cached_share=sum(one.cached_share * one.slots for one in states) / slots,
        pictures_waiting=sum(one.pictures_waiting for one in states),
    )


class Ingress:
    """What Ray asks over HTTP. As many of them as are wanted know nothing of each other."""

    def __init__(self, settings: Settings, engines: Mapping[str, DeploymentHandle[Any]]) -> None:
        log_to()
        self.settings = settings
        self._engines = {name: Engines(handle) for name, handle in engines.items()}
        # How many wait is counted where they wait: by the handles, which refuse before anything is sent.
        self.lifecycle = Lifecycle(self._engines, sys.maxsize, settings)
        self.metrics = Metrics()
        self.spans = Spans()
        self.held = Held(settings.held_bytes)
        self._unknown = UnknownFields()
        self._looking: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The application; called by Ray where the event loop runs."""
        self._looking = asyncio.ensure_future(self._look())
        return make_app(self, self._asking)

    async def offered(self) -> list[Offered]:
        return [one.offered for one in self._engines.values() if one.offered is not None]

    async def metrics_page(self) -> bytes:
        pages = [("ingress", self.metrics.page())]
        for name, engines in self._engines.items():
            found = await engines.each("metrics_page")
            pages += [(f"{name}-{at}", page) for at, page in enumerate(found) if isinstance(page, bytes)]
        return merged(pages)

    def _asking(self, kind: Kind[Any]) -> Callable[[Request], Awaitable[Response]]:
        async def ask(request: Request) -> Response:
            exchange = exchange_of(request.scope)
            body = await body_of(request, self.settings.body_timeout_s)
            asked = await asyncio.to_thread(kind.read, body, self._unknown)
            if (engines := self._engines.get(asked.model)) is None:
                raise no_such_model(self._engines)
            exchange.model, exchange.streamed = asked.model, asked.stream
            call = (prefix_key(asked), request.scope["route"].path, body)
            return Relayed(engines.handle, call, exchange, self.metrics)

        return ask

    async def _look(self) -> None:
        while True:
            await asyncio.gather(*(one.look() for one in self._engines.values()))
            await asyncio.sleep(_LOOK_S)
