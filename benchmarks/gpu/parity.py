"""How far an engine's values are from the model's: what `verify` compares, and a long run of decode steps."""

from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite

import numpy as np

from benchmarks.gpu.steps import Found
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.families.family import Family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime.engine import Engine
from vlm_trt.verification.checks import check_engine
from vlm_trt.verification.expected import Expected
from vlm_trt.verification.figures import TOLERANCES, Figures
from vlm_trt.verification.passages import Passage

# Decode steps after the prompt, across windows and what is captured for them.
LONG_PROMPT, LONG_STEPS = 24, 64


def long_passage(model: ModelConfig, limits: Limits) -> Passage:
    """One prompt and many tokens after it, in the last slot."""
    length = min(LONG_PROMPT + LONG_STEPS, limits.max_seq_tokens)
    ids = np.random.default_rng(1).integers(0, model.decoder.vocab_size, length)
    return Passage(
        name=f"{length - LONG_PROMPT} steps",
        stage="prefill",
        slot=limits.max_batch - 1,
        ids=tuple(int(one) for one in ids),
        positions=np.arange(length),
        rows=np.full(length, -1),
        pictures=(),
        shape=PromptShape(length),
        ends=tuple(range(LONG_PROMPT, length + 1)),
    )


def compared(engine: Engine, kind: Family, expected: Expected) -> Found:
    """The worst figure of each stage, and what is outside the tolerance.

    Args:
        engine: a loaded bundle.
        kind: its family.
        expected: of the model, for passages that fit the engine's limits.
    """
    outcomes = list(check_engine(engine, kind, expected, "", lambda _: None))
    failures = [sentence for outcome in outcomes for sentence in outcome.failures]
    return {
        "tolerance": asdict(TOLERANCES[engine.precision]),
        "worst": _worst([one for outcome in outcomes for one in outcome.figures]),
        "passed": not failures,
        "failures": failures[:8],
        "failure_count": len(failures),
        "notes": [note for outcome in outcomes for note in outcome.notes],
    }


def _worst(figures: Sequence[Figures]) -> dict[str, dict[str, float | None]]:
    """Per stage the largest relative difference, None where values are not finite, and the smallest cosine."""
    found: dict[str, dict[str, float | None]] = {}
    for stage in dict.fromkeys(one.stage for one in figures):
        own = [one for one in figures if one.stage == stage]
        relative, cosine = max(one.relative for one in own), min(one.cosine for one in own)
        found[stage] = {
            "relative": relative if isfinite(relative) else None,
            "cosine": cosine if isfinite(cosine) else None,
        }
    return found
