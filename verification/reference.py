"""The model itself, whole in memory, to be asked one token after another or timed: no cache, slots or chunks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import DecoderConfig, ModelConfig
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.modules.build import build_module
from vlm_trt.exporter.weight_stream import load_weights
from vlm_trt.families.contract import PictureInputs, of_connector, of_tower, stacked
from vlm_trt.families.family import Family
from vlm_trt.families.messages import Prompt
from vlm_trt.families.positions import PositionTable

Floats = NDArray[np.float32]


class Reference:
    """The modules of the model. Shown equal to the original implementation by the golden tests."""

    def __init__(self, checkpoint: Checkpoint, model: ModelConfig, family: Family) -> None:
        self.model, self._family = model, family
        weights = family.weight_map(model).weights
        self.modules = {}
        for component in model.weighted:
            with torch.device("meta"):
                module = build_module(component, model, Precision.FP32)
            own = [weight for weight in weights if weight.component is component]
            module.load_state_dict(load_weights(own, model, checkpoint), assign=True)
            self.modules[component] = module

    @torch.inference_mode()
    def vision_encoder(self, pictures: Sequence[PictureInputs]) -> Floats:
        """[images, patches, width] of preprocessed pictures."""
        given = stacked([of_tower(one, self.model) for one in pictures])
        inputs = {name: torch.from_numpy(array) for name, array in given.items()}
        return _numpy(self.modules[Component.VISION_ENCODER](**inputs))

    @torch.inference_mode()
    def resampler(self, vision_features: Floats, pictures: Sequence[PictureInputs]) -> Floats:
        """[images, patches, width] of those preprocessed pictures → [images, tokens, hidden]."""
        given = stacked([of_connector(one, self.model) for one in pictures])
        inputs = {name: torch.from_numpy(array) for name, array in given.items()}
        return _numpy(self.modules[Component.RESAMPLER](torch.from_numpy(vision_features), **inputs))

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], prompt: Prompt, features: Floats | None, position: int = -1) -> Floats:
        """Logits [vocab] at one position, the whole sequence computed at once.

        Args:
            ids: the prompt and what was generated after it [seq].
            prompt: says where the pictures stand.
            features: image features [images, tokens, hidden], or None.
            position: which position's logits; −1 the last.
        """
        decoder, seq = self.model.decoder, len(ids)
        table = self._family.position_table(decoder, prompt.shape, seq)
        flat = torch.zeros(1, decoder.hidden) if features is None else torch.from_numpy(features).flatten(0, 1)
        rows = prompt.image_rows(seq)
        empty = torch.zeros(1, decoder.kv_heads, seq, decoder.head_dim)
        outputs = self.modules[Component.DECODER](
            input_ids=torch.from_numpy(np.where(rows < 0, ids, 0))[None],
            image_features=flat,
            image_rows=torch.from_numpy(rows)[None],
            **decoder_rows(decoder, table, slice(0, seq)),
            write_index=torch.zeros(1, dtype=torch.int64),
            kv_positions=torch.arange(seq),
            logits_index=torch.tensor([position % seq]),
            past=[empty] * (2 * decoder.layers),
        )
        return _numpy(outputs[0][0])


def decoder_rows(decoder: DecoderConfig, table: PositionTable, part: slice) -> dict[str, torch.Tensor | None]:
    """What the decoder's forward is told about those positions of one sequence, [1, …] each."""
    rows = {
        "rope_cos": table.cos,
        "rope_sin": table.sin,
        "query_scale": table.query_scale if decoder.logn_attention else None,
        "attend_until": table.attend_until,
        "attend_from": None if decoder.window is None else table.attend_from,
    }
    return {name: None if row is None else torch.from_numpy(row[part])[None] for name, row in rows.items()}


def _numpy(tensor: torch.Tensor) -> Floats:
    values: Floats = tensor.numpy()
    return values
