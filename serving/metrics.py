"""What the server measures, for Prometheus: the names are vLLM's behind a prefix of ours, with its label `model_name`.

A dashboard made for vLLM fits once its prefix is replaced.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlm_trt.runtime.model import Answer
from vlm_trt.serving.lifecycle import Watched

PREFIX = "vlm_trt:"
MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model_name",)
# Seconds. Source: vLLM's buckets, so that the same dashboard's panels have the same steps.
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class Metrics:
    """Counters and histograms, and the engines' states as of now."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.first_token = self._histogram(
            "time_to_first_token_seconds", "From a request's arrival to its first token.", _FIRST
        )
        self.between_tokens = self._histogram(
            "inter_token_latency_seconds", "Between two pieces of an answer, which are nearly always single tokens.",
            _BETWEEN,
        )  # fmt: skip
        self.whole = self._histogram("e2e_request_latency_seconds", "From a request's arrival to its end.", _WHOLE)
        self.queued = self._histogram("request_queue_time_seconds", "From the engine's queue to a slot.", _WHOLE)
        self.decoding = self._histogram(
            "image_decode_seconds", "A picture decoded and resized, with its share of tokenizing.", _FIRST
        )
        self.vision = self._histogram(
            "vision_seconds", "The pictures of a request in vision encoder and resampler.", _FIRST
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, those of pictures among them.")
        self.generated = self._counter("generation_tokens", "Tokens of answers.")
        self.asked_tokens = self._counter(
            "prefix_cache_queries", "Tokens of prompts that were looked for in the cache."
        )
        self.found_tokens = self._counter("prefix_cache_hits", "Those that were found there.")
        self.images = self._counter("images", "Pictures of requests.")
        self.answered = self._counter("request_success", "Answers that ended by themselves.", "finished_reason")
        self.cancelled = self._counter("requests_cancelled", "Requests whose client left or did not read.", "stage")
        # Of no model: many are refused before anybody knows which one they are for.
        self.rejected = Counter(
            f"{PREFIX}requests_rejected", "Requests refused or failed.", ("reason",), registry=self.registry
        )

    def watch(self, engines: Mapping[str, Watched]) -> None:
        """Shows the engines' states from now on."""
        self.registry.register(_States(engines))

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

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, about, _MODEL, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(PREFIX + name, about, (*_MODEL, *labels), registry=self.registry)


class _States(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, engines: Mapping[str, Watched]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        states = {name: engine.state() for name, engine in self._engines.items()}
        yield _gauge("num_requests_running", "Requests in a slot.", ((n, s.running) for n, s in states.items()))
        yield _gauge("num_requests_waiting", "Requests without a slot.", ((n, s.waiting) for n, s in states.items()))
        yield _gauge(
            "kv_cache_usage_perc", "Share of the cache's positions that running requests hold, 1 for all.",
            ((n, s.cached_share) for n, s in states.items()),
        )  # fmt: skip
        yield _gauge("engine_up", "1 where the engine's thread runs.", ((n, float(s.alive)) for n, s in states.items()))


def _gauge(name: str, about: str, values: Iterable[tuple[str, float]]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(PREFIX + name, about, labels=_MODEL)
    for model, value in values:
        family.add_metric([model], value)
    return family
