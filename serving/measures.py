"""What a server measures, whoever collects it: vLLM's names behind a prefix of ours, with its label `model_name`.

A dashboard made for vLLM fits once its prefix is replaced.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from vlm_trt.runtime.loop import State
from vlm_trt.runtime.model import Answer

PREFIX = "vlm_trt:"
MODEL = "model_name"
# Seconds. Source: vLLM's buckets, so that the same dashboard's panels have the same steps.
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class Makes(Protocol):
    """Whoever collects: Prometheus' own client, or a server around us. What it makes has its `labels(…)`, and those
    have `inc` or `observe`."""

    def counter(self, name: str, about: str, labels: tuple[str, ...]) -> Any:
        """What only grows; `_total` belongs to its name."""

    def histogram(self, name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Any:
        """Seconds, by how many of them lie below each bucket."""


class Measures:
    """Counters and histograms."""

    def __init__(self, makes: Makes) -> None:
        def seconds(name: str, about: str, buckets: tuple[float, ...]) -> Any:
            return makes.histogram(PREFIX + name, about, (MODEL,), buckets)

        def counter(name: str, about: str, *labels: str) -> Any:
            return makes.counter(PREFIX + name, about, (MODEL, *labels))

        self.first_token = seconds(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST
        )
        self.between_tokens = seconds(
            "inter_token_latency_seconds", "Between two pieces of an answer, which are nearly always single tokens.",
            _BETWEEN,
        )  # fmt: skip
        self.whole = seconds("e2e_request_latency_seconds", "From a request's arrival to its end.", _WHOLE)
        self.queued = seconds("request_queue_time_seconds", "From the engine's queue to a slot.", _WHOLE)
        self.decoding = seconds(
            "image_decode_seconds", "A picture decoded and resized, with its share of tokenizing.", _FIRST
        )
        self.vision = seconds(
            "vision_seconds", "The pictures of a request in vision encoder and resampler.", _FIRST
        )  # fmt: skip
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, those of pictures among them.")
        self.generated = counter("generation_tokens", "Tokens of answers.")
        self.asked_tokens = counter("prefix_cache_queries", "Tokens of prompts that were looked for in the cache.")
        self.found_tokens = counter("prefix_cache_hits", "Those that were found there.")
        self.images = counter("images", "Pictures of requests.")
        self.answered = counter("request_success", "Answers that ended by themselves.", "finished_reason")
        self.cancelled = counter("requests_cancelled", "Requests whose client left or did not read.", "stage")
        # Of no model: many are refused before anybody knows which one they are for.
        self.rejected = makes.counter(f"{PREFIX}requests_rejected", "Requests refused or failed.", ("reason",))

    def answer(self, model: str, answer: Answer, elapsed_s: float) -> None:
        """Counts an answer that has ended."""
        self.prompt_tokens.labels(model).inc(len(answer.prompt_ids))
        self.asked_tokens.labels(model).inc(len(answer.prompt_ids))
        self.found_tokens.labels(model).inc(answer.reused_tokens)
        self.generated.labels(model).inc(len(answer.ids))
        self.answered.labels(model, answer.finish_reason).inc()
        self.whole.labels(model).observe(elapsed_s)
        self.queued.labels(model).observe(answer.queue_ms / 1000)
        stages = answer.stages_ms
        if vision := stages.get("vision_encoder", 0) + stages.get("resampler", 0):
            self.vision.labels(model).observe(vision / 1000)

    def pictures(self, model: str, count: int, seconds: float) -> None:
        """Counts the pictures of a request, which took so long together."""
        self.images.labels(model).inc(count)
        for _ in range(count):
            self.decoding.labels(model).observe(seconds / count)


def gauges(state: State) -> Iterator[tuple[str, str, float]]:
    """Name, what it is and value of each figure that stands for a loop as it is now."""
    yield f"{PREFIX}num_requests_running", "Requests in a slot.", state.running
    yield f"{PREFIX}num_requests_waiting", "Requests without a slot.", state.waiting
    yield (
        f"{PREFIX}kv_cache_usage_perc", "Share of the cache's positions that running requests hold, 1 for all.",
        state.cached_share,
    )  # fmt: skip
    yield f"{PREFIX}engine_up", "1 where the engine's thread runs.", float(state.alive)
