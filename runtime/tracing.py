"""Stages shown to other tools while they run: NVTX ranges for Nsight Systems, spans for OpenTelemetry. Off by default.

Off, a stage costs one comparison. Switched on for the whole process, by `trace_with` or the variable VLM_TRT_TRACE.
"""

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from vlm_trt.bundle.errors import IncompatibleError, UsageError

VARIABLE = "VLM_TRT_TRACE"

# Begins a stage; what it returns ends it.
Begin = Callable[[str], Callable[[], object]]

_begin: Begin | None = None


def begin(stage: str) -> Callable[[], object] | None:
    """Tells the tool, if there is one, that a stage begins; what comes back is called at its end."""
    return None if _begin is None else _begin(stage)


def trace_with(tool: str | None) -> None:
    """Shows the stages to a tool from now on.

    Args:
        tool: "nvtx", "opentelemetry", or None for nobody.
    Raises:
        UsageError: no such tool.
        IncompatibleError: its package is not installed.
    """
    global _begin
    if tool is None:
        _begin = None
    elif tool in _TOOLS:
        _begin = _TOOLS[tool]()
    else:
        raise UsageError(f"{VARIABLE} is {tool!r}; choose one of {', '.join(_TOOLS)}")


def trace_as_asked() -> None:
    """Shows the stages to the tool that VLM_TRT_TRACE names, if it is set."""
    if name := os.environ.get(VARIABLE):
        trace_with(name)


def _nvtx() -> Begin:
    nvtx = _package("nvtx", "nvtx")
    domain = nvtx.get_domain("vlm-trt")
    attributes: dict[str, Any] = {}

    def begin(stage: str) -> Callable[[], object]:
        if stage not in attributes:
            attributes[stage] = domain.get_event_attributes(message=stage)
        domain.push_range(attributes[stage])
        return lambda: domain.pop_range()

    return begin


def _opentelemetry() -> Begin:
    """Spans of whatever provider the program has set up; their parent is the span that is current."""
    tracer = _package("opentelemetry.trace", "opentelemetry-api").get_tracer("vlm-trt")

    def begin(stage: str) -> Callable[[], object]:
        span = tracer.start_as_current_span(stage)
        span.__enter__()
        return lambda: span.__exit__(None, None, None)

    return begin


_TOOLS = {"nvtx": _nvtx, "opentelemetry": _opentelemetry}


def _package(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise IncompatibleError(f"tracing needs the package {package}; install it: pip install {package}") from None
