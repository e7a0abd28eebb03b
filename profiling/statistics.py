"""Many measurements of one thing, summed up as the field does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Summary:
    """The field names are those of AIPerf's records."""

    unit: str
    avg: float
    min: float
    max: float
    p50: float
    p90: float
    p95: float
    p99: float
    std: float
    count: int


def summary(values: Sequence[float], unit: str) -> Summary:
    """Of one or more values; quantiles are interpolated, the deviation is the sample's."""
    array = np.asarray(values, dtype=np.float64)
    p50, p90, p95, p99 = (float(one) for one in np.percentile(array, [50, 90, 95, 99]))
    return Summary(
        unit=unit,
        avg=float(array.mean()),
        min=float(array.min()),
        max=float(array.max()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        std=float(array.std(ddof=1)) if len(array) > 1 else 0.0,
        count=len(array),
    )


@dataclass(frozen=True)
class Rate:
    """So many of something in all that time: one number, as AIPerf has it."""

    unit: str
    avg: float
