"""What graphs or engines are compared with, computed once for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vlm_trt.families.contract import PictureInputs
from vlm_trt.verification.passages import Passage

Floats = NDArray[np.float32]
_REGION_ROWS = 16


@dataclass(frozen=True)
class Scored:
    """The end of each run of a passage."""

    logits: Floats  # [runs, vocab]
    hidden: Floats | None  # [runs, hidden], of a model with region heads


@dataclass(frozen=True)
class RegionAsked:
    """Rows that the region heads are asked."""

    hidden_states: Floats  # [rows, hidden]
    coordinate: Floats  # [rows, 1]
    size: Floats  # [rows, 2]


class Truth(Protocol):
    """The model, or graphs that stand for it."""

    def vision(self, pictures: Sequence[PictureInputs]) -> tuple[list[Floats], list[Floats]]:
        """Of each preprocessed picture [patches, width] and [tokens, hidden]."""

    def scored(self, passages: Sequence[Passage], features: Sequence[Floats]) -> list[Scored]:
        """What each passage ends in, run by run; features [tokens, hidden] of each picture."""

    def region(self, asked: RegionAsked) -> dict[str, Floats]:
        """The outputs of the region heads by name, of a model that has them."""


@dataclass(frozen=True)
class Expected:
    """The values of the model, or of what stands for it."""

    passages: tuple[Passage, ...]
    pictures: tuple[PictureInputs, ...]
    patches: tuple[Floats, ...]  # of each picture [patches, width]
    features: tuple[Floats, ...]  # of each picture [tokens, hidden]
    scored: tuple[Scored, ...]  # per passage
    asked: RegionAsked | None  # of a model with region heads
    region: dict[str, Floats]  # what they say to that

    def of_one_picture(self) -> "Expected":
        """The first picture and the prompt that asks about it alone: what is quick to compare."""
        kept = [at for at, passage in enumerate(self.passages) if set(passage.pictures) == {0}]
        return Expected(
            tuple(self.passages[at] for at in kept),
            self.pictures[:1],
            self.patches[:1],
            self.features[:1],
            tuple(self.scored[at] for at in kept),
            self.asked,
            self.region,
        )


def expect(truth: Truth, passages: Sequence[Passage], pictures: Sequence[PictureInputs]) -> Expected:
    """What it makes of pictures and passages."""
    patches, features = truth.vision(pictures)
    scored = truth.scored(passages, features)
    asked = _region_asked([one.hidden for one in scored if one.hidden is not None])
    return Expected(
        passages=tuple(passages),
        pictures=tuple(pictures),
        patches=tuple(patches),
        features=tuple(features),
        scored=tuple(scored),
        asked=asked,
        region={} if asked is None else truth.region(asked),
    )


def _region_asked(hidden: Sequence[Floats]) -> RegionAsked | None:
    """The first hidden states, and values from one end of their range to the other."""
    if not hidden:
        return None
    rows = np.concatenate(hidden)[:_REGION_ROWS]
    shares = np.linspace(0, 1, len(rows), dtype=np.float32)
    return RegionAsked(rows, shares[:, None], np.stack((shares, shares[::-1]), axis=-1))
