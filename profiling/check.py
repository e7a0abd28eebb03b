"""A profile against an earlier one of the same work: which stages have become slower by more than chance."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import UsageError
from vlm_trt.profiling.document import SCHEMA

_KINDS = ("stages", "metrics")
_SAME = ("precision", "backend", "family")
# Standard errors of the difference of two medians that chance reaches once in hundreds of stages.
_CHANCE = 3.0
# The standard error of a median is that of the mean times √(π/2), for normal noise.
_MEDIAN = math.sqrt(math.pi / 2)


@dataclass(frozen=True)
class Slower:
    """A stage or latency that takes longer than it may."""

    workload: str
    name: str
    before_ms: float  # medians
    now_ms: float
    noise_ms: float  # that chance may make of their difference

    def __str__(self) -> str:
        return (
            f"{self.name} took {self.now_ms:.3f} ms instead of {self.before_ms:.3f} ms "
            f"({self.now_ms / self.before_ms - 1:+.1%}, chance explains {self.noise_ms:.3f} ms) at {self.workload}"
        )


def slower(
    now: Mapping[str, Any], before: Mapping[str, Any], allowed: float, stages: Sequence[str] = ()
) -> list[Slower]:
    """What became slower than allowed, by more than the noise of both.

    Args:
        now, before: profiles as JSON values, of the same precision and backend on the same processor.
        allowed: share of the earlier median.
        stages: names of stages and latencies to look at; none: all of them.
    Raises:
        UsageError: the profiles are of different work or machines, have no point in common, or no such stage.
    """
    for field in _SAME:
        if now["setup"][field] != before["setup"][field]:
            raise UsageError(
                f"the earlier profile's {field} is {before['setup'][field]}, this one's {now['setup'][field]}; "
                "check against a profile of the same kind"
            )
    processors = [one["environment"].get("gpu") or one["environment"].get("processor") for one in (before, now)]
    if processors[0] != processors[1]:
        raise UsageError(
            f"the earlier profile is from {processors[0]} and this machine is {processors[1]}; times of two machines "
            "say nothing about the program"
        )
    earlier = {json.dumps(point["workload"], sort_keys=True): point for point in before["points"]}
    both = [
        (point, earlier[key])
        for point in now["points"]
        if (key := json.dumps(point["workload"], sort_keys=True)) in earlier
    ]
    if not both:
        raise UsageError("no workload of the earlier profile was measured; profile with the same options")
    known = dict.fromkeys(name for mine, _ in both for kind in _KINDS for name in _latencies(mine[kind]))
    if unknown := [stage for stage in stages if stage not in known]:
        raise UsageError(f"there is no stage {unknown[0]!r} to check; choose from {', '.join(known)}")
    found = (one for mine, old in both for one in _slower(mine, old, allowed))
    return [one for one in found if not stages or one.name in stages]


def _slower(now: Mapping[str, Any], before: Mapping[str, Any], allowed: float) -> Iterator[Slower]:
    for kind in _KINDS:
        for name, summary in _latencies(now[kind]).items():
            old = before[kind].get(name)
            if old is None:
                continue
            noise = _CHANCE * math.hypot(_error(summary), _error(old))
            if summary["p50"] - old["p50"] > max(allowed * old["p50"], noise):
                yield Slower(now["label"], name, old["p50"], summary["p50"], noise)


def _latencies(summaries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: summary for name, summary in summaries.items() if summary["unit"] == "ms"}


def _error(summary: Mapping[str, Any]) -> float:
    return float(_MEDIAN * summary["std"] / math.sqrt(summary["count"]))


def read_profile(path: Path) -> dict[str, Any]:
    """
    Raises:
        UsageError: it cannot be read, or is no profile of this version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give a profile's JSON file") from None
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}); give a profile's JSON file") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA or not {"setup", "points"} <= found.keys():
        raise UsageError(f"{path} is no profile that this version reads; make one: vlm-trt profile BUNDLE -o FOLDER")
    return found
