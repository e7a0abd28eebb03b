"""Quantized graphs as ONNX Runtime runs them on the CPU: what engines built from them are compared with.

Their own verdict is about answers (`calibration/gate.py`); an engine has to compute what they compute.
"""

from collections.abc import Sequence

import numpy as np

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.signature import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import Family
from vlm_trt.families.messages import Prompt
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.backend import from_float32, to_float32
from vlm_trt.runtime.load import open_engine
from vlm_trt.verification.reference import Floats


class GraphReference:
    """The three graphs, called as `Reference` is."""

    def __init__(self, bundle: Bundle, precision: Precision, family: Family) -> None:
        self.model: ModelConfig = bundle.manifest.model
        self._family = family
        self._engine = open_engine(bundle, precision, as_stored(precision))

    def vision_encoder(self, pixels: Floats) -> Floats:
        """[images, 3, H, W] → [images, patches, width]."""
        return self._together([self._engine.encode_vision(pixels[at : at + 1]).read() for at in range(len(pixels))])

    def resampler(self, vision_features: Floats) -> Floats:
        """[images, patches, width] → [images, queries, hidden]."""
        dtype = self._engine.precision.dtype
        parts = [
            self._engine.backend.upload(from_float32(vision_features[at : at + 1], dtype), dtype)
            for at in range(len(vision_features))
        ]
        return self._together([self._engine.resample(part).read() for part in parts])

    def logits(self, ids: Sequence[int], prompt: Prompt, features: Floats | None, rope_alpha: float) -> Floats:
        """Logits [vocab] after the last of the ids, the whole sequence computed at once."""
        engine, dtype = self._engine, self._engine.precision.dtype
        table = self._family.position_table(engine.model.decoder, rope_alpha, engine.limits.max_seq_tokens)
        kept = None if features is None else engine.backend.upload(from_float32(features, dtype), dtype)
        bound = None if kept is None else kept.rows(0, kept.shape[0])
        engine.cache.clear(0)
        return engine.prefill(0, np.array(ids, dtype=np.int64), prompt.image_rows(len(ids)), bound, table)

    def _together(self, parts: Sequence[np.ndarray]) -> Floats:
        return np.concatenate([to_float32(part, self._engine.precision.dtype) for part in parts])
