"""What is measured, on Triton's own metrics page: the families of `serving/measures.py`.

Each figure is a message to the server, so one thread alone writes them: the one that sends the responses.
"""

import logging
from typing import Any

from vlm_trt.runtime.loop import State
from vlm_trt.serving.measures import MODEL, Measures, gauges

log = logging.getLogger("vlm_trt.triton_backend")


class Sample:
    """One figure of a family. A metric that outlives its family is an error of the server's, so it holds it."""

    def __init__(self, family: Any, metric: Any) -> None:
        self._family, self._metric = family, metric
        self._value: float | None = None

    def inc(self, amount: float = 1) -> None:
        if amount > 0:
            self._metric.increment(amount)

    def observe(self, seconds: float) -> None:
        self._metric.observe(seconds)

    def set(self, value: float) -> None:
        if value != self._value:
            self._value = value
            self._metric.set(value)


class Family:
    """Figures of one name, told apart by their labels, as Prometheus' own client has them."""

    def __init__(self, family: Any, labels: tuple[str, ...], buckets: tuple[float, ...]) -> None:
        self._family, self._labels = family, labels
        self._buckets = {"buckets": list(buckets)} if buckets else {}
        self._samples: dict[tuple[str, ...], Sample] = {}

    def labels(self, *values: str) -> Sample:
        """The figure of these values."""
        if values not in self._samples:
            labels = dict(zip(self._labels, values, strict=True))
            metric = self._family.Metric(labels=labels, **self._buckets)
            self._samples[values] = Sample(self._family, metric)
        return self._samples[values]


class TritonMetrics(Measures):
    """Counters, histograms, and the loop's state as it was when it was last shown."""

    def __init__(self, pb_utils: Any, model: str, state: State) -> None:
        """
        Args:
            pb_utils: Triton's module, of a server that collects metrics.
            model: the name of ours.
            state: of its loop.
        """
        self._pb_utils, self._model = pb_utils, model
        super().__init__(self)
        kind = pb_utils.MetricFamily.GAUGE
        self._gauges = {name: self._family(name, about, (MODEL,), kind) for name, about, _ in gauges(state)}
        self.show(state)

    def counter(self, name: str, about: str, labels: tuple[str, ...]) -> Family:
        return self._family(f"{name}_total", about, labels, self._pb_utils.MetricFamily.COUNTER)

    def histogram(self, name: str, about: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Family:
        return self._family(name, about, labels, self._pb_utils.MetricFamily.HISTOGRAM, buckets)

    def show(self, state: State) -> None:
        """The loop as it is now."""
        for name, _, value in gauges(state):
            self._gauges[name].labels(self._model).set(value)

    def _family(
        self, name: str, about: str, labels: tuple[str, ...], kind: Any, buckets: tuple[float, ...] = ()
    ) -> Family:
        return Family(self._pb_utils.MetricFamily(name=name, description=about, kind=kind), labels, buckets)
