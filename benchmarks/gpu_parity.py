"""How far a backend's values are from the model's, on what `benchmarks.gpu_expected` recorded."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from vlm_trt.families.family import Family
from vlm_trt.runtime.engine import Engine
from vlm_trt.verification.checks import check_engine
from vlm_trt.verification.expected import Expected
from vlm_trt.verification.figures import TOLERANCES, Figures


def compared(engine: Engine, kind: Family, expected: Expected) -> dict[str, Any]:
    """The worst figure of each stage, and what is outside the tolerance.

    Args:
        engine: a loaded bundle.
        kind: its family.
        expected: what was recorded for its limits.
    """
    outcomes = list(check_engine(engine, kind, expected, "", lambda _: None))
    failures = [sentence for outcome in outcomes for sentence in outcome.failures]
    return {
        "tolerance": asdict(TOLERANCES[engine.precision]),
        "worst": _worst([one for outcome in outcomes for one in outcome.figures]),
        "passed": not failures,
        "failures": failures,
        "notes": [note for outcome in outcomes for note in outcome.notes],
    }


def _worst(figures: list[Figures]) -> dict[str, dict[str, float | None]]:
    """Per stage the largest relative difference, None where values are not finite, and the smallest cosine."""
    found: dict[str, dict[str, float | None]] = {}
    for stage in dict.fromkeys(one.stage for one in figures):
        own = [one for one in figures if one.stage == stage]
        relative = max(one.relative for one in own)
        found[stage] = {
            "relative": relative if isfinite(relative) else None,
            "cosine": min(one.cosine for one in own),
        }
    return found
