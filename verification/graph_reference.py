"""Quantized graphs as ONNX Runtime runs them on the CPU: what engines built from them are compared with.

Their own verdict is about answers (`calibration/gate.py`); an engine has to compute what they compute.
"""

from collections.abc import Sequence

import numpy as np

from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.family import Family
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.load import open_engine
from vlm_trt.verification.expected import Floats, RegionAsked, Scored
from vlm_trt.verification.passages import Passage
from vlm_trt.verification.region_check import region_outputs
from vlm_trt.verification.trial import Trial


class GraphReference:
    """The graphs, called as the model is."""

    def __init__(self, bundle: Bundle, precision: Precision, backend: Backend, family: Family) -> None:
        self._engine = open_engine(bundle, precision, backend)
        self._trial = Trial(self._engine, family)

    def vision(self, pictures: Sequence[PictureInputs]) -> tuple[list[Floats], list[Floats]]:
        """Of each preprocessed picture [patches, width] and [tokens, hidden]."""
        runs = list(self._trial.vision(pictures, [(at,) for at in range(len(pictures))]))
        return [one.patches[0] for one in runs], [one.features[0] for one in runs]

    def scored(self, passages: Sequence[Passage], features: Sequence[Floats]) -> list[Scored]:
        """What each passage ends in, run by run; NaN where a run failed."""
        model = self._engine.model
        logits = [np.full((len(one.ends), model.decoder.vocab_size), np.nan, dtype=np.float32) for one in passages]
        hidden = [np.full((len(one.ends), model.decoder.hidden), np.nan, dtype=np.float32) for one in passages]
        for row in self._trial.decoder(passages, features):
            if row.logits is not None:
                logits[row.passage][row.run] = row.logits
            if row.hidden is not None:
                hidden[row.passage][row.run] = row.hidden
        known = model.region is not None
        return [Scored(one, other if known else None) for one, other in zip(logits, hidden, strict=True)]

    def region(self, asked: RegionAsked) -> dict[str, Floats]:
        """The outputs of the region heads by name."""
        return region_outputs(self._engine, asked)
