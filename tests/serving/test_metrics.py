"""/metrics, read by Prometheus' own parser."""

from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.serving.conftest import Serve
from tests.serving.live import Live, until
from tests.serving.pictures import data_url, encoded


@pytest.fixture
def own(serve: Serve) -> Iterator[Live]:
    """A server of the test's own: its counts begin at nothing."""
    yield serve({"tiny": "ntk-256", "other": "ntk-256"})


def samples(live: Live) -> dict[tuple[str, ...], float]:
    """Name and values of the labels → value."""
    response = live.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(response.text))
    assert all(family.name.startswith("vlm_trt:") and family.documentation for family in families)
    return {
        (one.name.removeprefix("vlm_trt:"), *one.labels.values()): one.value
        for family in families
        for one in family.samples
    }


def test_an_answer_is_counted(own: Live) -> None:
    url = data_url(encoded())
    usage = own.ask([{"type": "image_url", "image_url": {"url": url}}], max_tokens=5, ignore_eos=True).json()["usage"]
    again = own.ask([{"type": "image_url", "image_url": {"url": url}}], max_tokens=5, ignore_eos=True).json()["usage"]
    found = samples(own)
    assert found["prompt_tokens_total", "tiny"] == usage["prompt_tokens"] + again["prompt_tokens"]
    assert found["generation_tokens_total", "tiny"] == 10
    assert found["prefix_cache_queries_total", "tiny"] == found["prompt_tokens_total", "tiny"]
    assert found["prefix_cache_hits_total", "tiny"] == again["prompt_tokens_details"]["cached_tokens"] > 0
    assert found["images_total", "tiny"] == found["image_decode_seconds_count", "tiny"] == 2
    assert found["vision_seconds_count", "tiny"] == 1  # the second picture was known
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        assert found[f"{name}_count", "tiny"] == 2 and found[f"{name}_sum", "tiny"] > 0
    assert found["inter_token_latency_seconds_count", "tiny"] >= 2
    success = [(labels, value) for labels, value in found.items() if labels[0] == "request_success_total"]
    assert [value for _, value in success] == [2] and {"length", "tiny"} == set(success[0][0][1:])


def test_the_engines_are_seen_as_they_are(own: Live) -> None:
    own.ask()
    own.idle()
    found = samples(own)
    for model in ("tiny", "other"):
        assert found["num_requests_running", model] == found["num_requests_waiting", model] == 0
        assert found["kv_cache_usage_perc", model] == 0 and found["engine_up", model] == 1


def test_refusals_are_counted_by_their_reason(own: Live) -> None:
    own.ask(n=2)
    own.ask(n=2)
    own.ask(model="nobody")
    own.client.get("/nothing")
    found = samples(own)
    assert found["requests_rejected_total", "unsupported_parameter"] == 2
    assert found["requests_rejected_total", "model_not_found"] == found["requests_rejected_total", "not_found"] == 1
    assert not any("nobody" in labels or "/nothing" in labels for labels in found)  # no names that clients make up


def test_who_leaves_is_counted_by_what_it_had(own: Live) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 9_999, "ignore_eos": True}
    with own.client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        next(response.iter_lines())
    until(
        lambda: (
            ("requests_cancelled_total", "answering", "tiny") in {(name, *sorted(more)) for name, *more in samples(own)}
        )
    )
    own.idle()
    assert not [labels for labels in samples(own) if labels[0] == "requests_rejected_total"]
