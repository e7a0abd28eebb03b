"""Several pages of metrics as one: every line says whose it is."""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class _Pages(Collector):
    def __init__(self, pages: Sequence[tuple[str, str]]) -> None:
        self._pages = pages

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        for replica, page in self._pages:
            for family in text_string_to_metric_families(page):
                merged = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.samples.append(sample._replace(labels=sample.labels | {LABEL: replica}))
        yield from found.values()


def merged(pages: Iterable[tuple[str, bytes]]) -> bytes:
    """One page.

    Args:
        pages: name of a replica, and what it measured, as Prometheus reads it.
    """
    registry = CollectorRegistry()
    registry.register(_Pages([(replica, page.decode()) for replica, page in pages]))
    return generate_latest(registry)
