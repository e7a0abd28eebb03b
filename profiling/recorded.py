"""What a check reads of a profile's JSON, each value with its type and range: a damaged one must not pass."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlm_trt.bundle.json_values import count_of, value_of
from vlm_trt.profiling.profile_file import SCHEMA
from vlm_trt.profiling.workload import Workload

_LONGEST_MS = 1e12


@dataclass(frozen=True)
class Times:
    """Of a stage or latency, in milliseconds."""

    p50: float
    std: float
    count: int


@dataclass(frozen=True)
class RecordedPoint:
    workload: Workload
    times: Mapping[str, Times]  # stages first


@dataclass(frozen=True)
class Recorded:
    setup: Mapping[str, str]  # family, precision, backend, and the processor or GPU
    points: tuple[RecordedPoint, ...]


def recorded(document: Any) -> Recorded:
    """
    Args:
        document: a profile as JSON values.
    Raises:
        ValueError: a value is missing, mistyped or out of its range; it is named.
    """
    if not isinstance(document, dict):
        raise ValueError("it holds no object")
    if document.get("schema") != SCHEMA:
        raise ValueError(f"its schema is {document.get('schema')!r}, this version reads {SCHEMA}")
    setup, environment = value_of(document, "setup", dict), value_of(document, "environment", dict)
    machine = "gpu" if environment.get("gpu") is not None else "processor"
    points = value_of(document, "points", list)
    if not points:
        raise ValueError("points are none")
    return Recorded(
        {
            **{name: value_of(setup, name, str) for name in ("family", "precision", "backend")},
            "processor": value_of(environment, machine, str),
        },
        tuple(_point(point) for point in points),
    )


def _point(point: Any) -> RecordedPoint:
    workload = value_of(point, "workload", dict)
    sizes = {one.name: _size(workload, one.name) for one in fields(Workload)}
    times = {
        name: _times(name, one)
        for kind in ("stages", "metrics")
        for name, one in value_of(point, kind, dict).items()
        if value_of(one, "unit", str) == "ms"
    }
    return RecordedPoint(Workload(**sizes), times)


def _size(workload: Mapping[str, Any], name: str) -> Any:
    return None if name == "prompt_tokens" and workload.get(name) is None else count_of(workload, name, 0)


def _times(name: str, summary: Mapping[str, Any]) -> Times:
    p50, std = (value_of(summary, field, (int, float)) for field in ("p50", "std"))
    if not (0 < p50 < _LONGEST_MS and 0 <= std < _LONGEST_MS):  # NaN is not
        raise ValueError(f"p50 or std of {name} is no time")
    return Times(float(p50), float(std), count_of(summary, "count", 1))
