"""What is measured, for Prometheus."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vlm_trt.serving.lifecycle import Watched
from vlm_trt.serving.measures import MODEL, Measures, gauges

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics(Measures):
    """Counters and histograms, and the engines' states as of now."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self)

    def counter(self, name: str, about: str, labels: tuple[str, ...]) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def histogram(self, name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, about, labels, buckets=buckets, registry=self.registry)

    def watch(self, engines: Mapping[str, Watched]) -> None:
        """Shows the engines' states from now on."""
        self.registry.register(_States(engines))

    def page(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _States(Collector):
    """Gauges that are read when they are asked for."""

    def __init__(self, engines: Mapping[str, Watched]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        states = {model: tuple(gauges(engine.state())) for model, engine in self._engines.items()}
        for figures in zip(*states.values(), strict=True):  # one of every model
            name, about, _ = figures[0]
            family = GaugeMetricFamily(name, about, labels=(MODEL,))
            for model, (_, _, value) in zip(states, figures, strict=True):
                family.add_metric([model], value)
            yield family
