"""A workload run again and again: when every token came and what each stage took."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from vlm_trt.bundle.errors import UsageError
from vlm_trt.profiling.workload import Asked, Workload, requests
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.sampler import Sampling
from vlm_trt.runtime.timing import Span, StageClock

# Called after every iteration.
Progress = Callable[[], None]


@dataclass(frozen=True)
class RequestTimes:
    """One request, in seconds since the iteration began: all requests of an iteration are submitted then."""

    tokens: tuple[float, ...]  # when each token was there
    spans: tuple[Span, ...]  # its stages; a decode step is shared by all requests in flight
    prompt_tokens: int
    images: int
    ids: tuple[int, ...]

    @property
    def first_token_ms(self) -> float:
        return self.tokens[0] * 1000

    @property
    def latency_ms(self) -> float:
        return self.tokens[-1] * 1000

    @property
    def inter_token_ms(self) -> float | None:
        """(request latency − time to first token) / (tokens − 1), as AIPerf has it; None with one token."""
        gaps = len(self.tokens) - 1
        return (self.latency_ms - self.first_token_ms) / gaps if gaps else None


@dataclass(frozen=True)
class Iteration:
    """All requests of a workload, once."""

    seconds: float
    requests: tuple[RequestTimes, ...]

    @property
    def spans(self) -> tuple[Span, ...]:
        """Every stage once, in the order they began."""
        return tuple(sorted({span for one in self.requests for span in one.spans}, key=lambda span: span.start))


@dataclass(frozen=True)
class Measured:
    """One point."""

    workload: Workload
    iterations: tuple[Iteration, ...]
    warmup_ms: tuple[float, ...]  # of the iterations before them


def measure(
    model: VisionLanguageModel,
    workload: Workload,
    iterations: int,
    warmup: int,
    progress: Progress = lambda: None,
) -> Measured:
    """The workload, so many times; nothing of an iteration is left for the next one to use.

    Args:
        model: a loaded bundle.
        workload: what is asked.
        iterations: counted ones.
        warmup: iterations before them.
        progress: called after every iteration.
    Raises:
        UsageError: the bundle has no room for the workload, or nothing is to be measured.
    """
    if iterations < 1:
        raise UsageError(f"{iterations} iterations measure nothing; give 1 or more")
    asked = requests(model, workload)
    done = []
    for _ in range(warmup + iterations):
        done.append(once(model, asked, workload.new_tokens))
        progress()
    warm = tuple(one.seconds * 1000 for one in done[:warmup])
    return Measured(workload, tuple(done[warmup:]), warm)


def once(model: VisionLanguageModel, asked: Sequence[Asked], new_tokens: int) -> Iteration:
    """Every request submitted at once, and all of them answered to the end."""
    model.generator.forget()
    began = perf_counter()
    sequences = [_submitted(model, one, new_tokens) for one in asked]
    while any(one.phase is not Phase.ENDED for one in sequences):
        model.scheduler.step()
        for error in (one.error for one in sequences if one.error is not None):
            raise error
    seconds = perf_counter() - began
    times = (_times(one, wanted, began) for one, wanted in zip(sequences, asked, strict=True))
    return Iteration(seconds, tuple(times))


def _submitted(model: VisionLanguageModel, asked: Asked, new_tokens: int) -> Generation:
    clock = StageClock()
    with clock.stage("tokenization"):
        model.build_prompt(asked.conversation)
    request = Request(asked.prompt, _GREEDY, new_tokens, ignore_eos=True, speculation=False)
    return model.scheduler.submit(request, clock)


_GREEDY = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, greedy=True, seed=0)


def _times(sequence: Generation, asked: Asked, began: float) -> RequestTimes:
    return RequestTimes(
        tokens=tuple(at - began for at in sequence.clock.token_times),
        spans=tuple(span._replace(start=span.start - began) for span in sequence.clock.spans),
        prompt_tokens=len(asked.prompt.ids),
        images=len(asked.prompt.images),
        ids=tuple(sequence.ids),
    )
