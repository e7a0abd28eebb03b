"""A profile against an earlier one of the same work: which stages have become slower by more than chance."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_trt.bundle.errors import UsageError
from vlm_trt.profiling.profile_file import from_file
from vlm_trt.profiling.recorded import Recorded, RecordedPoint, Times, recorded
from vlm_trt.profiling.workload import Workload

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


def require_points(before: Recorded, points: Sequence[Workload]) -> None:
    """
    Raises:
        UsageError: the earlier profile lacks a point, so that it would be measured and not checked.
    """
    known = {point.workload for point in before.points}
    for one in points:
        if one not in known:
            raise UsageError(
                f"the earlier profile has no point {one.label!r} to check against (it has "
                f"{'; '.join(point.workload.label for point in before.points)}); leave out --batch, --images, "
                "--prompt-tokens and --max-new-tokens, and its own points are measured"
            )


def require_stages(before: Recorded, stages: Sequence[str]) -> None:
    """
    Raises:
        UsageError: the earlier profile has no such stage or latency.
    """
    known = dict.fromkeys(name for point in before.points for name in point.times)
    for stage in stages:
        if stage not in known:
            raise UsageError(f"there is no stage {stage!r} to check; choose from {', '.join(known)}")


def require_same_kind(now: Mapping[str, str | None], before: Recorded) -> None:
    """
    Args:
        now: family, precision, backend and processor of what is to be checked.
        before: the earlier profile.
    Raises:
        UsageError: the profiles are of different work or machines.
    """
    for field in ("precision", "backend", "family"):
        if now[field] != before.setup[field]:
            raise UsageError(
                f"the earlier profile's {field} is {before.setup[field]}, this one's {now[field]}; "
                "check against a profile of the same kind"
            )
    if now["processor"] != before.setup["processor"]:
        raise UsageError(
            f"the earlier profile is from {before.setup['processor']} and this machine is {now['processor']}; times of "
            "two machines say nothing about the program"
        )


def slower(now: Recorded, before: Recorded, allowed: float, stages: Sequence[str] = ()) -> list[Slower]:
    """What became slower than allowed, by more than the noise of both.

    Args:
        now, before: profiles; every point of the first is looked at.
        allowed: share of the earlier median.
        stages: names of stages and latencies to look at; none: all of them.
    Raises:
        UsageError: the profiles are of different work or machines, or a point or stage is not in both.
    """
    require_same_kind(now.setup, before)
    require_points(before, [point.workload for point in now.points])
    require_stages(before, stages)
    require_stages(now, stages)
    earlier = {point.workload: point for point in before.points}
    found = (one for point in now.points for one in _slower(point, earlier[point.workload], allowed))
    return [one for one in found if not stages or one.name in stages]


def _slower(now: RecordedPoint, before: RecordedPoint, allowed: float) -> Iterator[Slower]:
    for name, times in now.times.items():
        old = before.times.get(name)
        if old is None:
            continue
        noise = _CHANCE * math.hypot(_error(times), _error(old))
        if times.p50 - old.p50 > max(allowed * old.p50, noise):
            yield Slower(now.workload.label, name, old.p50, times.p50, noise)


def _error(times: Times) -> float:
    return _MEDIAN * times.std / math.sqrt(times.count)


def read_profile(path: Path) -> Recorded:
    """
    Raises:
        UsageError: it cannot be read, or is no profile of this version.
    """
    return from_file(path, recorded, "is no profile that this version reads", "vlm-trt profile BUNDLE -o FOLDER")
