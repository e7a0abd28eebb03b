"""The model itself, whole in memory, to be asked one token after another or timed: no cache, slots or chunks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.modules.build import build_module
from vlm_trt.exporter.weight_stream import load_weights
from vlm_trt.families.family import Family
from vlm_trt.families.messages import Prompt

Floats = NDArray[np.float32]


class Reference:
    """The three modules. Shown equal to the original implementation by the golden tests."""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig, family: Family) -> None:
        self.model, self._family = model, family
        weights = family.weight_map(model).weights
        self.modules = {}
        for component in Component:
            with torch.device("meta"):
                module = build_module(component, model, Precision.FP32)
            own = [weight for weight in weights if weight.component is component]
            module.load_state_dict(load_weights(own, model, checkpoint), assign=True)
            self.modules[component] = module

    @torch.inference_mode()
    def vision_encoder(self, pixels: Floats) -> Floats:
        """[images, 3, H, W] → [images, patches, width]."""
        return _numpy(self.modules[Component.VISION_ENCODER](torch.from_numpy(pixels)))

    @torch.inference_mode()
    def resampler(self, vision_features: Floats) -> Floats:
        """[images, patches, width] → [images, queries, hidden]."""
        return _numpy(self.modules[Component.RESAMPLER](torch.from_numpy(vision_features)))

    @torch.inference_mode()
    def logits(
        self, ids: Sequence[int], prompt: Prompt, features: Floats | None, rope_alpha: float, position: int = -1
    ) -> Floats:
        """Logits [vocab] at one position, the whole sequence computed at once.

        Args:
            ids: the prompt and what was generated after it [seq].
            prompt: says where the pictures stand.
            features: image features [images, queries, hidden], or None.
            rope_alpha: the NTK factor of the prompt.
            position: which position's logits; −1 the last.
        """
        decoder, seq = self.model.decoder, len(ids)
        table = self._family.position_table(decoder, rope_alpha, seq)
        flat = torch.zeros(1, decoder.hidden) if features is None else torch.from_numpy(features).flatten(0, 1)
        every = torch.arange(seq)
        empty = torch.zeros(1, decoder.kv_heads, seq, decoder.head_dim)
        outputs = self.modules[Component.DECODER](
            torch.tensor([list(ids)]),
            flat,
            torch.from_numpy(prompt.image_rows(seq))[None],
            torch.from_numpy(table.cos)[None],
            torch.from_numpy(table.sin)[None],
            torch.from_numpy(table.query_scale)[None] if decoder.logn_attention else None,
            torch.zeros(1, dtype=torch.int64),
            every[None],
            every,
            torch.tensor([position % seq]),
            [empty] * (2 * decoder.layers),
        )
        return _numpy(outputs[0][0])


def _numpy(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.numpy()
    return values
