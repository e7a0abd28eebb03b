"""The time that each stage must take at least, and how far it is from that."""

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_trt.bundle.precision import Precision
from vlm_trt.profiling.probe import Ceilings
from vlm_trt.profiling.statistics import Summary
from vlm_trt.profiling.work import Cost

# A stage this many times above its floor is not limited by what the floor counts.
_FAR = 3.0


@dataclass(frozen=True)
class Gap:
    """A stage beside its floor."""

    bytes: float
    operations: float
    floor_ms: float
    measured_ms: float  # median
    times_the_floor: float
    floor_by: str  # "bandwidth" or "arithmetic": which of both makes the floor
    limited_by: str  # the same, or "overhead" where the stage is far above it


def gaps(
    costs: Mapping[str, Cost], measured: Mapping[str, Summary], ceilings: Ceilings, precision: Precision
) -> dict[str, Gap]:
    """Every stage that has a cost."""
    integer = precision.quantization == "int8" and ceilings.integer_operations_per_second is not None
    peak = ceilings.integer_operations_per_second if integer else ceilings.operations_per_second
    assert peak is not None
    return {
        stage: _gap(cost, measured[stage].p50, ceilings.bytes_per_second, peak)
        for stage, cost in costs.items()
        if stage in measured
    }


def _gap(cost: Cost, measured_ms: float, bytes_per_second: float, peak: float) -> Gap:
    by_bytes, by_operations = 1000 * cost.bytes / bytes_per_second, 1000 * cost.operations / peak
    floor = max(by_bytes, by_operations)
    floor_by = "bandwidth" if by_bytes >= by_operations else "arithmetic"
    ratio = measured_ms / floor
    return Gap(
        cost.bytes, cost.operations, floor, measured_ms, ratio, floor_by, floor_by if ratio < _FAR else "overhead"
    )
