"""A span for every request, where VLM_TRT_TRACE says opentelemetry, with the names that its conventions have.

Its parent is the caller's span, where the request names one (`traceparent`).
"""

import os
from typing import Any

from starlette.datastructures import Headers

from vlm_trt.runtime import tracing
from vlm_trt.serving.exchange import Exchange


class Spans:
    """Begins spans of whatever provider the program has set up; without one, and switched off, they are nothing."""

    def __init__(self) -> None:
        self._tracer: Any = None
        if os.environ.get(tracing.VARIABLE) == "opentelemetry":
            from opentelemetry import trace

            self._tracer = trace.get_tracer("vlm-trt")

    def begin(self, route: str, headers: Headers) -> Any:
        """A span, or None where nobody looks."""
        if self._tracer is None:
            return None
        from opentelemetry import propagate, trace

        parent = propagate.extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        return self._tracer.start_span(route, context=parent, kind=trace.SpanKind.SERVER)

    def end(self, span: Any, exchange: Exchange) -> None:
        """Source of the names: OpenTelemetry's conventions for HTTP and for generative models."""
        if span is None:
            return
        attributes = {
            "http.request.method": exchange.method,
            "http.response.status_code": exchange.status,
            "gen_ai.request.model": exchange.model,
            "gen_ai.usage.input_tokens": exchange.prompt_tokens,
            "gen_ai.usage.output_tokens": exchange.completion_tokens,
            "gen_ai.response.finish_reasons": [exchange.finish_reason] if exchange.finish_reason else None,
            "error.type": exchange.reason,
            "vlm_trt.request.id": exchange.number,
            "vlm_trt.pictures": exchange.pictures,
            "vlm_trt.first_token_ms": exchange.first_token_ms,
        }
        span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        span.end()
