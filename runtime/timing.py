"""When each stage of one request ran, under the names the field uses."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple

from runtime import tracing


class Span(NamedTuple):
    """One stage, once."""

    stage: str
    start: float  # seconds of `time.perf_counter`
    seconds: float


class StageClock:
    """Notes every stage of a request; a stage may be entered many times, and one of several requests at once."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        close = tracing.begin(name)
        start = perf_counter()
        try:
            yield
        finally:
            self.spans.append(Span(name, start, perf_counter() - start))
            if close is not None:
                close()

    def add(self, span: Span) -> None:
        """A stage that another clock has measured."""
        self.spans.append(span)

    @property
    def stages_ms(self) -> dict[str, float]:
        """Milliseconds per stage, in the order they were first entered."""
        found: dict[str, float] = {}
        for span in self.spans:
            found[span.stage] = found.get(span.stage, 0.0) + span.seconds * 1000
        return found

    @property
    def decode_step_ms(self) -> list[float]:
        """Milliseconds of each decode step."""
        return [span.seconds * 1000 for span in self.spans if span.stage == "decode_step"]
