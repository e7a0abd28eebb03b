"""What a check reads of a profile's JSON, each value with its type and range: a damaged one must not pass."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vlm_trt.profiling.document import SCHEMA
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
    setup, environment = _of(document, "setup", dict), _of(document, "environment", dict)
    machine = "gpu" if environment.get("gpu") is not None else "processor"
    points = _of(document, "points", list)
    if not points:
        raise ValueError("points are none")
    return Recorded(
        {
            **{name: _of(setup, name, str) for name in ("family", "precision", "backend")},
            "processor": _of(environment, machine, str),
        },
        tuple(_point(point) for point in points),
    )


def _point(point: Any) -> RecordedPoint:
    workload = _of(point, "workload", dict)
    sizes = {one.name: _size(workload, one.name) for one in fields(Workload)}
    times = {
        name: _times(name, one)
        for kind in ("stages", "metrics")
        for name, one in _of(point, kind, dict).items()
        if _of(one, "unit", str) == "ms"
    }
    return RecordedPoint(Workload(**sizes), times)


def _size(workload: Mapping[str, Any], name: str) -> Any:
    return None if name == "prompt_tokens" and workload.get(name) is None else _count(workload, name, 0)


def _times(name: str, summary: Mapping[str, Any]) -> Times:
    p50, std = (_of(summary, field, (int, float)) for field in ("p50", "std"))
    if not (0 < p50 < _LONGEST_MS and 0 <= std < _LONGEST_MS):  # NaN is not
        raise ValueError(f"p50 or std of {name} is no time")
    return Times(float(p50), float(std), _count(summary, "count", 1))


def _count(values: Any, name: str, least: int) -> int:
    found: int = _of(values, name, int)
    if not least <= found < 2**31:
        raise ValueError(f"{name} is {found}")
    return found


def _of(values: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of an object, of that type."""
    found = values.get(name) if isinstance(values, dict) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"{name!r} is missing or of a wrong type")
    return found
