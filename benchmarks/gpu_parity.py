"""How far a backend's values are from the model's, on the prompt that `benchmarks.gpu_expected` recorded."""

from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.families.family import Family
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.engine import Engine
from vlm_trt.verification.checks import Decoded, Outcome, check_cache, check_decoder, pixels_of
from vlm_trt.verification.figures import TOLERANCES, Figures, compare, failure
from vlm_trt.verification.samples import Sample


def compared(engine: Engine, kind: Family, sample: Sample, expected: Path) -> dict[str, Any]:
    """The worst figure of each stage, what is outside the tolerance, and what could not be compared.

    Args:
        engine: a loaded bundle.
        kind: its family.
        sample: the prompt that was recorded.
        expected: the file that was recorded.
    """
    with np.load(expected) as stored:
        arrays = {name: stored[name] for name in stored.files}
    decoded = Decoded(
        sample=sample,
        features=arrays["features"],
        rope_alpha=kind.rope_alpha(engine.model.decoder, len(sample.prompt.ids)),
        ids=tuple(int(one) for one in arrays["ids"]),
        logits=tuple(arrays["logits"]),
    )
    tolerance = TOLERANCES[engine.precision]
    figures, not_compared, features = _vision(engine, kind, sample, arrays)
    outcomes = [check_decoder(engine, kind, decoded, tolerance)]
    chain = check_decoder(engine, kind, replace(decoded, features=features), tolerance)
    outcomes.append(_as_chain(chain))
    outcomes.append(check_cache(engine, kind, decoded, tolerance))
    failures = [sentence for one in figures if (sentence := failure(one, tolerance))]
    figures += [one for outcome in outcomes for one in outcome.figures]
    failures += [sentence for outcome in outcomes for sentence in outcome.failures]
    return {
        "tolerance": asdict(tolerance),
        "worst": _worst(figures),
        "passed": not failures,
        "failures": failures,
        "notes": [note for outcome in outcomes for note in outcome.notes],
        "not_compared": not_compared,
    }


def _vision(
    engine: Engine, kind: Family, sample: Sample, arrays: dict[str, Any]
) -> tuple[list[Figures], dict[str, str], Any]:
    """Figures of both towers, stages whose values cannot be read back with the reason, and the image features."""
    dtype = engine.precision.dtype
    patches = engine.encode_vision(pixels_of(kind, engine, sample.prompt))
    features = to_float32(engine.resample(patches).read(), dtype)
    figures = [compare("resampler", sample.name, arrays["features"], features)]
    try:
        read = to_float32(patches.read(), dtype)
    except VlmTrtError as error:  # bf16 on ONNX Runtime's CUDA provider: seen through the resampler only
        return figures, {"vision_encoder": str(error)}, features
    return [compare("vision_encoder", sample.name, arrays["patches"], read), *figures], {}, features


def _as_chain(outcome: Outcome) -> Outcome:
    """The decoder on the backend's own image features: pixels in, logits out."""
    figures = tuple(replace(one, stage=f"whole_chain {one.stage}") for one in outcome.figures)
    return Outcome(
        figures,
        tuple(f"whole chain: {sentence}" for sentence in outcome.failures),
        tuple(f"whole chain: {note}" for note in outcome.notes),
    )


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
