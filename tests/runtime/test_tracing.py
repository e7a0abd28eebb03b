"""Stages shown to NVTX and OpenTelemetry, and to nobody."""

from collections.abc import Iterator

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from vlm_trt.bundle.errors import IncompatibleError, UsageError
from vlm_trt.runtime import tracing
from vlm_trt.runtime.timing import StageClock


@pytest.fixture(autouse=True)
def nobody_after() -> Iterator[None]:
    yield
    tracing.trace_with(None)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    found = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(found))
    trace.set_tracer_provider(provider)
    return found


def test_spans_lie_within_the_programs_own(exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    tracing.trace_with("opentelemetry")
    clock = StageClock()
    with trace.get_tracer("server").start_as_current_span("request"):
        with clock.stage("prefill"):
            pass
        with clock.stage("decode_step"):
            pass
    prefill, decode, request = exporter.get_finished_spans()
    assert (prefill.name, decode.name, request.name) == ("prefill", "decode_step", "request")
    assert prefill.parent is not None and prefill.parent.span_id == request.context.span_id
    assert [span.stage for span in clock.spans] == ["prefill", "decode_step"]


def test_a_stage_that_fails_ends_too(exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    tracing.trace_with("opentelemetry")
    with pytest.raises(KeyError), StageClock().stage("prefill"):
        raise KeyError
    assert [span.name for span in exporter.get_finished_spans()] == ["prefill"]
    assert trace.get_current_span().get_span_context().span_id == 0


def test_ranges_are_pushed_and_popped(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVTX itself shows them only to a profiler that listens."""
    import nvtx

    calls: list[str] = []

    class Domain:
        def get_event_attributes(self, message: str) -> str:
            return message

        def push_range(self, attributes: str) -> None:
            calls.append(f"push {attributes}")

        def pop_range(self) -> None:
            calls.append("pop")

    monkeypatch.setattr(nvtx, "get_domain", lambda name: Domain() if name == "vlm-trt" else None)
    tracing.trace_with("nvtx")
    with StageClock().stage("decode_step"):
        calls.append("step")
    assert calls == ["push decode_step", "step", "pop"]


def test_the_real_nvtx_takes_it() -> None:
    tracing.trace_with("nvtx")
    clock = StageClock()
    with clock.stage("decode_step"), clock.stage("sampling"):
        pass
    assert [span.stage for span in clock.spans] == ["sampling", "decode_step"]


def test_nobody_is_told_by_default(exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    with StageClock().stage("prefill"):
        pass
    assert tracing.begin("prefill") is None and not exporter.get_finished_spans()


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch, exporter: InMemorySpanExporter) -> None:
    exporter.clear()
    monkeypatch.setenv(tracing.VARIABLE, "opentelemetry")
    tracing.trace_as_asked()
    with StageClock().stage("prefill"):
        pass
    assert len(exporter.get_finished_spans()) == 1
    monkeypatch.setenv(tracing.VARIABLE, "printf")
    with pytest.raises(UsageError, match="VLM_TRT_TRACE is 'printf'; choose one of nvtx, opentelemetry"):
        tracing.trace_as_asked()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(tracing, "import_module", missing)
    with pytest.raises(IncompatibleError, match="tracing needs the package nvtx; install it: pip install nvtx"):
        tracing.trace_with("nvtx")
