"""Measured iterations as the figures that people compare, under the names of AIPerf and of the runtime's stages."""

from collections.abc import Iterator, Sequence
from statistics import median

from vlm_trt.profiling.measure import Iteration, Measured
from vlm_trt.profiling.statistics import Rate, Summary, summary
from vlm_trt.runtime.timing import Span

# In the order an answer goes through them.
STAGES = (
    "tokenization", "preprocess", "vision_encoder", "resampler", "prefill", "decode_step", "sampling",
    "detokenization",
)  # fmt: skip
# On a GPU there are parts of them, too: `runtime.timing.PARTS`.


def request_metrics(measured: Measured) -> dict[str, Summary]:
    """Of each request: its latency and sizes.

    Source: the metrics of NVIDIA's AIPerf: time to first token, inter-token latency = (request latency − time to first
    token) / (tokens − 1).
    """
    requests = [one for iteration in measured.iterations for one in iteration.requests]
    gaps = [gap for one in requests if (gap := one.inter_token_ms) is not None]
    found = {
        "time_to_first_token": summary([one.first_token_ms for one in requests], "ms"),
        "request_latency": summary([one.latency_ms for one in requests], "ms"),
        "input_sequence_length": summary([one.prompt_tokens for one in requests], "tokens"),
        "output_sequence_length": summary([len(one.tokens) for one in requests], "tokens"),
    }
    if gaps:
        found["inter_token_latency"] = summary(gaps, "ms")
        found["output_token_throughput_per_user"] = summary([1000 / gap for gap in gaps], "tokens/sec/user")
    return found


def rates(measured: Measured) -> dict[str, Rate]:
    """All that was done in all iterations, over all their seconds.

    Source: AIPerf's output token throughput = all tokens / duration, and the same of requests and pictures.
    """
    requests = [one for iteration in measured.iterations for one in iteration.requests]
    seconds = sum(iteration.seconds for iteration in measured.iterations)
    counts = {
        "output_token_throughput": (sum(len(one.tokens) for one in requests), "tokens/sec"),
        "request_throughput": (len(requests), "requests/sec"),
    }
    if measured.workload.images:
        counts["image_throughput"] = (sum(one.images for one in requests), "images/sec")
    return {name: Rate(unit, count / seconds) for name, (count, unit) in counts.items()}


def stage_metrics(measured: Measured) -> dict[str, Summary]:
    """Milliseconds of every run of each stage."""
    found: dict[str, list[float]] = {}
    for iteration in measured.iterations:
        for span in iteration.spans:
            found.setdefault(span.stage, []).append(span.seconds * 1000)
    return {stage: summary(found[stage], "ms") for stage in (*STAGES, *found) if stage in found}


def decode_by_position(measured: Measured) -> list[tuple[int, float]]:
    """Positions in the cache before a decode step of the longest request, and the step's median milliseconds."""
    by_step: dict[int, list[float]] = {}
    for iteration in measured.iterations:
        steps = [span for span in iteration.spans if span.stage == "decode_step"]
        for at, span in enumerate(steps):
            by_step.setdefault(at, []).append(span.seconds * 1000)
    begin = max(one.prompt_tokens for one in measured.iterations[0].requests)
    return [(begin + at, median(values)) for at, values in by_step.items()]


def typical(iterations: Sequence[Iteration]) -> Iteration:
    """The one with the median duration."""
    return sorted(iterations, key=lambda one: one.seconds)[len(iterations) // 2]


def waterfall(iteration: Iteration) -> Iterator[tuple[int, Span]]:
    """Every stage with the number of the request that it began for, in the order they began."""
    seen: set[Span] = set()
    for number, request in enumerate(iteration.requests):
        for span in request.spans:
            if span not in seen:
                seen.add(span)
                yield number, span
