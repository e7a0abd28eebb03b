"""A server that probes and commands are tried on."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving.live import Live, serving
from vlm_trt.serving.settings import Settings


@pytest.fixture(scope="session")
def live(exported: Callable[..., Path]) -> Iterator[Live]:
    with serving({"bundle": exported("ntk-256")}, Settings(drain_timeout_s=20)) as found:
        yield found
