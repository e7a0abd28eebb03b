"""Pages of metrics made one."""

from prometheus_client.parser import text_string_to_metric_families

from vlm_trt.fleet.pages import merged
from vlm_trt.serving.measures import PREFIX
from vlm_trt.serving.metrics import Metrics


def page(seconds: float, images: int) -> bytes:
    metrics = Metrics()
    metrics.first_token.labels("m").observe(seconds)
    metrics.images.labels("m").inc(images)
    return metrics.page()


def test_every_line_says_whose_it_is_and_none_is_lost() -> None:
    one, two = page(0.2, 3), page(30, 5)
    families = {one.name: one for one in text_string_to_metric_families(merged([("a", one), ("b", two)]).decode())}
    images = families[f"{PREFIX}images"]
    assert images.type == "counter"
    assert {(s.labels["replica"], s.value) for s in images.samples if s.name.endswith("_total")} == {("a", 3), ("b", 5)}
    first = families[f"{PREFIX}time_to_first_token_seconds"]
    sums = {sample.labels["replica"]: sample.value for sample in first.samples if sample.name.endswith("_sum")}
    assert sums == {"a": 0.2, "b": 30}
    below = {sample.labels["replica"]: sample.value for sample in first.samples if sample.labels.get("le") == "0.25"}
    assert below == {"a": 1, "b": 0}


def test_a_family_is_described_once() -> None:
    text = merged([("a", page(1, 1)), ("b", page(1, 1))]).decode()
    assert text.count(f"# HELP {PREFIX}images_total ") == 1
