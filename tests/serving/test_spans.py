"""A span for every request, where they are asked for."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.serving.conftest import Serve
from tests.serving.live import until
from vlm_trt.runtime import tracing


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Those of a provider of the test's own: the process has one for all, and it can be set once."""
    found, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    monkeypatch.setenv(tracing.VARIABLE, "opentelemetry")
    yield found
    tracing.trace_with(None)


def test_a_request_is_a_span_of_its_caller(serve: Serve, spans: InMemorySpanExporter) -> None:
    live = serve()
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "ignore_eos": True}
    response = live.client.post("/v1/chat/completions", json=body, headers={"traceparent": parent})
    assert response.status_code == 200
    until(lambda: any(span.name == "POST /v1/chat/completions" for span in spans.get_finished_spans()))
    (span,) = [one for one in spans.get_finished_spans() if one.name == "POST /v1/chat/completions"]
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert span.kind is trace.SpanKind.SERVER and span.attributes is not None
    usage = response.json()["usage"]
    assert span.attributes["gen_ai.request.model"] == "tiny" and span.attributes["http.response.status_code"] == 200
    assert span.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert span.attributes["gen_ai.usage.output_tokens"] == 3
    assert span.attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert span.attributes["vlm_trt.request.id"] == response.headers["x-request-id"]


def test_a_refusal_says_why(serve: Serve, spans: InMemorySpanExporter) -> None:
    live = serve()
    live.ask(n=2)
    until(lambda: len(spans.get_finished_spans()) > 0)
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None and span.attributes["error.type"] == "unsupported_parameter"


def test_without_being_asked_for_there_are_none(
    serve: Serve, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tracing.VARIABLE)
    assert serve().ask().status_code == 200
    assert not spans.get_finished_spans()
