"""Milliseconds per stage of one request, under the names the field uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class StageClock:
    """Adds up the time spent in each stage; a stage may be entered many times."""

    def __init__(self) -> None:
        self.stages_ms: dict[str, float] = {}
        self.decode_step_ms: list[float] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = perf_counter()
        try:
            yield
        finally:
            self.add(name, (perf_counter() - start) * 1000)

    def add(self, name: str, milliseconds: float) -> None:
        self.stages_ms[name] = self.stages_ms.get(name, 0.0) + milliseconds
        if name == "decode_step":
            self.decode_step_ms.append(milliseconds)
