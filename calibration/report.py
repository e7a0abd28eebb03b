"""What a quantization did and what it costs, as it is stored beside the graphs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import Quantization
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.reading import read_json
from vlm_trt.bundle.staging import replace_file, storage_errors
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.attempt import Attempt
from vlm_trt.calibration.gate import Verdict, as_text, report_path
from vlm_trt.calibration.picture import error_picture
from vlm_trt.calibration.prepare import Job
from vlm_trt.calibration.rewrite import LayerError, Plan


class NotPublishedError(VerificationError):
    """The answers are too much worse: nothing but the report is written."""

    def __init__(self, message: str, report: Path) -> None:
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class Report:
    """What was done, and what it costs."""

    precision: Precision
    layers: tuple[LayerError, ...]
    kept: tuple[str, ...]  # layers that the search left in float
    limits: Mapping[str, float]  # activation → the largest magnitude that 8 bits show of it
    verdict: Verdict | None  # None: not judged yet
    float_bytes: int  # of all graphs' weights
    quantized_bytes: int
    seconds: float
    path: str  # of the report in the bundle


def report_of(job: Job, plans: Mapping[Component, Plan], kept: frozenset[str], made: Attempt, seconds: float) -> Report:
    limits = {
        f"{component}.{source}": known.limit
        for component, plan in plans.items()
        for source, known in plan.activations.items()
        if any(one.kind.rounds_activations and one.linear.source == source for one in plan.treatments)
    }
    return Report(
        precision=job.precision,
        layers=made.layers,
        kept=tuple(sorted(kept)),
        limits=limits,
        verdict=made.verdict,
        float_bytes=job.float_bytes,
        quantized_bytes=made.bytes,
        seconds=seconds,
        path=report_path(job.precision),
    )


def as_json(job: Job, report: Report) -> dict[str, Any]:
    """What was done, as JSON values."""
    samples = job.samples
    return {
        "precision": job.precision,
        "floats": job.floats,
        "recipe": asdict(job.choices.recipe),
        "samples": None
        if samples is None
        else {
            "name": samples.name,
            "sha256": samples.sha256,
            "count": len(samples.samples),
            "pictures": sorted(samples.pictures),
        },
        "coverage": None if samples is None else samples.coverage,
        "kept": report.kept,
        "activation_limits": dict(report.limits),
        "layers": [asdict(one) for one in sorted(report.layers, key=lambda one: -one.error)],
        "float_bytes": report.float_bytes,
        "quantized_bytes": report.quantized_bytes,
        "seconds": round(report.seconds, 1),
    }


def quantization_of(job: Job) -> Quantization:
    """What the manifest says of how the graphs were made: a report is for readers, and decides nothing."""
    samples = job.samples
    return Quantization(
        precision=job.precision,
        floats=job.floats,
        max_drop=job.max_drop,
        samples=None if samples is None else samples.sha256,
        pictures=() if samples is None else tuple(sorted(samples.pictures)),
    )


def write_report(target: Path, content: Mapping[str, Any]) -> None:
    with storage_errors(target):
        target.parent.mkdir(exist_ok=True)
    replace_file(target, as_text(content))


def write_picture(report: Report, target: Path) -> None:
    """The errors of the layers, beside the report."""
    title = f"{report.precision}: error of each layer's product, relative, on the samples"
    replace_file(target.with_suffix(".svg"), error_picture(title, report.layers))


def read_report(bundle: Bundle, precision: Precision) -> dict[str, Any]:
    """What a bundle says of how its quantized graphs were made; nothing where it cannot be read."""
    try:
        found = read_json(bundle.path / report_path(precision))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
