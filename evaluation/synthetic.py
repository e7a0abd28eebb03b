"""Questions about drawn scenes as a data set: what is judged by where a user gives nothing."""

from typing import TYPE_CHECKING

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.evaluation.dataset import SYNTHETIC, DataSet, fingerprint
from vlm_trt.families.family import family

if TYPE_CHECKING:
    from vlm_trt.evaluation.scenes.questions import Manner


def synthetic(count: int, seed: int, model: ModelConfig | None = None) -> DataSet:
    """Held-out scenes of the generator that the demo model was trained with.

    Args:
        count: how many examples.
        seed: of the generator.
        model: that will be asked; None: one that converses and names places in tags.
    """
    from vlm_trt.evaluation.scenes.dataset import held_out_examples

    examples = tuple(held_out_examples(count, seed, manner_of(model)))
    return DataSet(f"{SYNTHETIC}, {count} examples, seed {seed}", fingerprint(examples), examples)


def manner_of(model: ModelConfig | None) -> "Manner":
    """How that model talks."""
    from vlm_trt.evaluation.scenes.questions import TALKATIVE, Manner

    if model is None:
        return TALKATIVE
    return Manner(family(model.family).write_places, model.generation.chat_format.converses)
