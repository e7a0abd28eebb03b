"""What graphs or engines are compared with, computed once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_trt.families.contract import PictureInputs
from vlm_trt.verification.passages import Passage

Floats = NDArray[np.float32]


class Truth(Protocol):
    """The model, or graphs that stand for it."""

    def vision(self, pictures: Sequence[PictureInputs]) -> tuple[Floats, Floats]:
        """[pictures, patches, width] and [pictures, tokens, hidden] of preprocessed pictures."""

    def logits(self, passages: Sequence[Passage], features: Floats) -> list[Floats]:
        """Per passage its logits [runs, vocab] at the end of each run; features [pictures, tokens, hidden]."""


@dataclass(frozen=True)
class Expected:
    """The values of the model, or of what stands for it."""

    passages: tuple[Passage, ...]
    pictures: tuple[PictureInputs, ...]
    patches: Floats  # [pictures, patches, width]
    features: Floats  # [pictures, tokens, hidden]
    logits: tuple[Floats, ...]  # per passage [runs, vocab]

    def of_one_picture(self) -> "Expected":
        """The first picture and the prompt that asks about it alone: what is quick to compare."""
        kept = [at for at, passage in enumerate(self.passages) if set(passage.pictures) == {0}]
        return Expected(
            tuple(self.passages[at] for at in kept),
            self.pictures[:1],
            self.patches[:1],
            self.features[:1],
            tuple(self.logits[at] for at in kept),
        )


def expect(truth: Truth, passages: Sequence[Passage], pictures: Sequence[PictureInputs]) -> Expected:
    """What it makes of pictures and passages."""
    patches, features = truth.vision(pictures)
    return Expected(tuple(passages), tuple(pictures), patches, features, tuple(truth.logits(passages, features)))
