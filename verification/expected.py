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

    def vision(self, pictures: Sequence[PictureInputs]) -> tuple[list[Floats], list[Floats]]:
        """Of each preprocessed picture [patches, width] and [tokens, hidden]."""

    def logits(self, passages: Sequence[Passage], features: Sequence[Floats]) -> list[Floats]:
        """Per passage its logits [runs, vocab] at the end of each run; features [tokens, hidden] of each picture."""


@dataclass(frozen=True)
class Expected:
    """The values of the model, or of what stands for it."""

    passages: tuple[Passage, ...]
    pictures: tuple[PictureInputs, ...]
    patches: tuple[Floats, ...]  # of each picture [patches, width]
    features: tuple[Floats, ...]  # of each picture [tokens, hidden]
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
    return Expected(
        passages=tuple(passages),
        pictures=tuple(pictures),
        patches=tuple(patches),
        features=tuple(features),
        logits=tuple(truth.logits(passages, features)),
    )
