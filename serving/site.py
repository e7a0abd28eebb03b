"""What the routes stand on: engines in this process, or elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vlm_trt.serving.lifecycle import Lifecycle
from vlm_trt.serving.limits import Held
from vlm_trt.serving.metrics import Metrics
from vlm_trt.serving.settings import Settings
from vlm_trt.serving.spans import Spans


@dataclass(frozen=True)
class Offered:
    """A model that can be asked."""

    name: str
    max_seq_tokens: int
    created: int  # seconds since 1970


class Site(Protocol):
    """One for a server."""

    settings: Settings
    lifecycle: Lifecycle
    metrics: Metrics
    spans: Spans
    held: Held

    async def offered(self) -> Sequence[Offered]:
        """What can be asked, in the order it was named."""

    async def metrics_page(self) -> bytes:
        """Everything measured, as Prometheus reads it."""
