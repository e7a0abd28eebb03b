"""How far the quantized graphs' next-token probabilities are from the float graphs', along the float graphs' answers.

Answers change only where a logit overtakes another; this tells of a shift before it does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlm_trt.calibration.rounding import Floats
from vlm_trt.evaluation.dataset import Example
from vlm_trt.evaluation.evaluate import conversation
from vlm_trt.runtime.model import VisionLanguageModel

# So many answers, up to so many tokens of each, are looked at: 160 MB of logits for a vocabulary of 151,936.
ANSWERS = 16
TOKENS = 16


@dataclass(frozen=True)
class Followed:
    """An answer, and the logits along it."""

    ids: tuple[int, ...]
    logits: Floats  # [len(ids), vocab], before each of the ids


@dataclass(frozen=True)
class Divergence:
    """Kullback–Leibler divergence of the quantized graphs' distribution from the float graphs', nats per token."""

    mean: float
    largest: float
    tokens: int
    answers: int


def chosen(count: int) -> list[int]:
    """Numbers of the questions whose answers are followed, evenly spread."""
    return sorted({at * count // ANSWERS for at in range(ANSWERS)} & set(range(count)))


def follow(
    model: VisionLanguageModel, questions: Sequence[Example], answers: Sequence[tuple[int, ...]]
) -> list[Followed]:
    """The model's logits along those answers, whoever gave them.

    Args:
        model: with no sequence in flight; what its slots hold is lost.
        questions: as they were asked.
        answers: ids of each.
    """
    found = []
    for question, ids in zip(questions, answers, strict=True):
        prompt = model.build_prompt(conversation(question))
        found.append(Followed(ids[:TOKENS], model.generator.continuation(prompt).forced(ids[:TOKENS])))
    model.generator.forget()
    return found


def divergence(floats: Sequence[Followed], quantized: Sequence[Followed]) -> Divergence:
    """Of the same answers."""
    each = [_divergences(one.logits, other.logits) for one, other in zip(floats, quantized, strict=True)]
    together = np.concatenate(each)
    return Divergence(float(together.mean()), float(together.max()), len(together), len(each))


def _divergences(expected: Floats, found: Floats) -> Floats:
    """Σ p·(log p − log q) of each row, in fp64: the differences are of many small terms."""
    p, q = _log_softmax(expected), _log_softmax(found)
    rows: Floats = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0).astype(np.float32)
    return rows


def _log_softmax(logits: Floats) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
