"""Servers that many tests share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.serving.live import Live, serving
from vlm_trt.serving.settings import Settings

Serve = Callable[..., Live]


@pytest.fixture(scope="session")
def live(exported: Callable[..., Path]) -> Iterator[Live]:
    """A server of one small model, called tiny, with the settings that ship."""
    with serving({"tiny": exported("ntk-256")}, Settings(drain_timeout_s=20)) as found:
        yield found


@pytest.fixture
def serve(exported: Callable[..., Path]) -> Iterator[Serve]:
    """A function: settings → a server of the test's own, over the same model or others."""
    with ExitStack() as stack:

        def start(models: dict[str, str] | None = None, send_buffer: int = 0, **settings: Any) -> Live:
            bundles = {name: exported(variant) for name, variant in (models or {"tiny": "ntk-256"}).items()}
            own = Settings(**{"drain_timeout_s": 20, **settings})
            return stack.enter_context(serving(bundles, own, send_buffer=send_buffer))

        yield start
