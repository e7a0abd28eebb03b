"""A profile as files: JSON for programs and later checks, CSV, JSONL of every iteration, a trace of all stages."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from io import StringIO
from typing import Any

from vlm_trt.profiling.measure import RequestTimes
from vlm_trt.profiling.metrics import decode_by_position, typical, waterfall
from vlm_trt.profiling.profile import Point, Profile
from vlm_trt.profiling.profile_file import SCHEMA
from vlm_trt.runtime.timing import Span


def document(profile: Profile, comparisons: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The profile as JSON values; docs/profiling.md lists the fields."""
    return {
        "schema": SCHEMA,
        "version": version("vlm-trt"),
        "setup": {
            "bundle": profile.label,
            "family": profile.family,
            "precision": profile.precision,
            "backend": profile.backend,
            "verified": profile.verified,
            "threads": profile.threads,
            "graphs": profile.graphs,
        },
        "environment": dict(profile.environment),
        "load_ms": profile.load_ms,
        "peak_rss_bytes": profile.peak_rss_bytes,
        "device_bytes": profile.device_bytes,
        "ceilings": None if profile.ceilings is None else asdict(profile.ceilings),
        "points": [_point(point) for point in profile.points],
        "layers": [asdict(layer) for layer in profile.layers],
        "comparisons": list(comparisons),
    }


def _point(point: Point) -> dict[str, Any]:
    measured = point.measured
    return {
        "workload": asdict(measured.workload),
        "label": measured.workload.label,
        "iterations": len(measured.iterations),
        "warmup_ms": measured.warmup_ms,
        "metrics": {
            **{name: asdict(summary) for name, summary in point.requests.items()},
            **{name: asdict(rate) for name, rate in point.rates.items()},
        },
        "stages": {name: asdict(summary) for name, summary in point.stages.items()},
        "roofline": {stage: asdict(gap) for stage, gap in point.roofline.items()},
        "decode_by_position": decode_by_position(measured),
        "timeline": [
            {"request": number, "stage": span.stage, "start_ms": span.start * 1000, "ms": span.seconds * 1000}
            for number, span in waterfall(typical(measured.iterations))
        ],
        "samples": {
            "time_to_first_token_ms": [one.first_token_ms for one in _requests(point)],
            "inter_token_ms": [gap * 1000 for one in _requests(point) for gap in _gaps(one)],
            "iteration_ms": [one.seconds * 1000 for one in measured.iterations],
        },
    }


def _requests(point: Point) -> list[RequestTimes]:
    return [one for iteration in point.measured.iterations for one in iteration.requests]


def _gaps(request: RequestTimes) -> list[float]:
    return [after - before for before, after in zip(request.tokens, request.tokens[1:], strict=False)]


def table_csv(found: Mapping[str, Any]) -> str:
    """A row for every metric and stage of every point."""
    out = StringIO()
    fields = ["unit", "avg", "min", "max", "p50", "p90", "p95", "p99", "std", "count"]
    writer = csv.DictWriter(out, ["batch", "images", "prompt_tokens", "new_tokens", "kind", "name", *fields])
    writer.writeheader()
    for point in found["points"]:
        for kind in ("metrics", "stages"):
            for name, summary in point[kind].items():
                writer.writerow({**point["workload"], "kind": kind.removesuffix("s"), "name": name, **summary})
    return out.getvalue()


def lines(profile: Profile) -> Iterator[str]:
    """A JSON line for every request of every iteration, its raw times in milliseconds."""
    for point in profile.points:
        for number, iteration in enumerate(point.measured.iterations):
            for at, request in enumerate(iteration.requests):
                yield json.dumps(
                    {
                        "workload": asdict(point.measured.workload),
                        "iteration": number,
                        "request": at,
                        "prompt_tokens": request.prompt_tokens,
                        "tokens_ms": [round(one * 1000, 4) for one in request.tokens],
                        "stages": [
                            [span.stage, round(span.start * 1000, 4), round(span.seconds * 1000, 4)]
                            for span in request.spans
                        ],
                    }
                )


def trace(profile: Profile) -> dict[str, Any]:
    """Every stage of every request in the Trace Event Format, which Perfetto and chrome://tracing open.

    A process is a point of the sweep, a thread a request; iterations follow each other.
    """
    events: list[dict[str, Any]] = []
    for number, point in enumerate(profile.points):
        label = point.measured.workload.label
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": label}})
        began = 0.0
        for iteration in point.measured.iterations:
            for at, request in enumerate(iteration.requests):
                events += [_event(number, at, began, span) for span in request.spans]
            began += iteration.seconds
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _event(process: int, thread: int, began: float, span: Span) -> dict[str, Any]:
    """A complete event; times in microseconds."""
    return {
        "ph": "X", "pid": process, "tid": thread, "name": span.stage, "cat": "stage",
        "ts": round((began + span.start) * 1e6, 1), "dur": round(span.seconds * 1e6, 1),
    }  # fmt: skip
