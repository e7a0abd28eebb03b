"""What every request works with: the models, and what all requests share."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import time
from typing import Any, TypeVar

from vlm_trt.runtime.loop import EngineLoop
from vlm_trt.serving.errors import no_such_model
from vlm_trt.serving.fetch import Fetcher
from vlm_trt.serving.grammar import Grammars
from vlm_trt.serving.lifecycle import Lifecycle
from vlm_trt.serving.limits import Budget, Held
from vlm_trt.serving.logs import UnknownFields
from vlm_trt.serving.metrics import Metrics
from vlm_trt.serving.settings import Settings
from vlm_trt.serving.site import Offered
from vlm_trt.serving.spans import Spans

T = TypeVar("T")
# Tokenizing, schemas and pictures; decoders and tokenizers let go of Python's lock.
_THREADS = 2


@dataclass(frozen=True)
class Served:
    """One model, by the name that requests call it."""

    name: str
    loop: EngineLoop
    grammars: Grammars
    speculation: bool | None  # of its requests, as `Options` has it
    created: int = field(default_factory=lambda: int(time()))

    @classmethod
    def of(cls, name: str, loop: EngineLoop, settings: Settings) -> "Served":
        model = loop.model
        grammars = Grammars(model.tokenizer, model.engine.model.decoder.vocab_size)
        return cls(name, loop, grammars, settings.speculation)


class Services:
    """Made where the event loop runs; `aclose` it."""

    def __init__(self, models: Mapping[str, EngineLoop], settings: Settings) -> None:
        self.settings = settings
        self.models = {name: Served.of(name, loop, settings) for name, loop in models.items()}
        slots = sum(loop.state().slots for loop in models.values())
        self.lifecycle = Lifecycle(models, slots + len(models) * settings.max_waiting, settings)
        self.metrics = Metrics()
        self.metrics.watch(models)
        self.spans = Spans()
        self.held = Held(settings.held_bytes)
        self.pixels = Budget(settings.pixels_at_once)
        self.fetcher = Fetcher(settings.media_hosts, settings.picture.bytes, settings.fetch_timeout_s)
        self.unknown_fields = UnknownFields()
        self._pool = ThreadPoolExecutor(_THREADS, "request")

    def named(self, name: str) -> Served:
        """
        Raises:
            ApiError: there is no such model.
        """
        if (found := self.models.get(name)) is None:
            raise no_such_model(self.models)
        return found

    async def offered(self) -> list[Offered]:
        return [
            Offered(one.name, one.loop.model.engine.limits.max_seq_tokens, one.created) for one in self.models.values()
        ]

    async def metrics_page(self) -> bytes:
        return self.metrics.page()

    async def in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """What the work returns, done in a thread of its own kind."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def aclose(self) -> None:
        await self.fetcher.aclose()
        self._pool.shutdown(wait=False, cancel_futures=True)
