"""When each stage of one request ran, under the names the field uses."""

from contextlib import AbstractContextManager, nullcontext
from threading import local
from time import perf_counter
from typing import NamedTuple

from vlm_trt.runtime import tracing

# Parts of other stages: their time is in those already.
PARTS = ("host_to_device", "device_to_host")


class Span(NamedTuple):
    """One stage, once."""

    stage: str
    start: float  # seconds of `time.perf_counter`
    seconds: float


class _Stage:
    """One stage while it runs. A class, since a generator would cost three times as much."""

    __slots__ = ("_around", "_close", "_name", "_spans", "_start")

    def __init__(self, name: str, spans: list[Span]) -> None:
        self._name, self._spans = name, spans

    def __enter__(self) -> None:
        self._around = getattr(_running, "spans", None)
        _running.spans = self._spans
        self._close = tracing.begin(self._name)
        self._start = perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spans.append(Span(self._name, self._start, perf_counter() - self._start))
        _running.spans = self._around
        if self._close is not None:
            self._close()


# The clock of the stage that each thread is in.
_running = local()


def within(name: str) -> AbstractContextManager[None]:
    """Notes a part of the stage that this thread is in, such as a copy; nothing where it is in none."""
    spans = getattr(_running, "spans", None)
    return nullcontext() if spans is None else _Stage(name, spans)


class StageClock:
    """Notes every stage of a request; a stage may be entered many times, and one of several requests at once."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Notes what runs within it."""
        return _Stage(name, self.spans)

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

    @property
    def first_token_ms(self) -> float:
        """Milliseconds from the first stage's beginning to the first token; 0 before that."""
        sampled = self.token_times
        return (sampled[0] - self.spans[0].start) * 1000 if sampled else 0.0

    def tokens_per_second(self, tokens: int) -> float | None:
        """Of so many tokens those after the first; None where there are none."""
        sampled = self.token_times
        return (tokens - 1) / (sampled[-1] - sampled[0]) if len(sampled) > 1 else None

    @property
    def token_times(self) -> list[float]:
        """When each token was there, or several that one step gave; seconds of `time.perf_counter`."""
        return [span.start + span.seconds for span in self.spans if span.stage == "sampling"]
