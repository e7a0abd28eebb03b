"""The model itself, its weights read from the checkpoint a layer at a time: torch modules in fp32, no cache, no slots.

All pictures, and all ids of all passages, go through a layer while it is in memory. A model of any size is so computed
in the memory of its largest layer, and its checkpoint is read once for the pictures and once for the text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.modules.any_size_towers import FrameEncoder, WindowEncoder
from vlm_trt.exporter.modules.blocks import Step
from vlm_trt.exporter.modules.build import build_module
from vlm_trt.exporter.modules.decoder import Decoder
from vlm_trt.exporter.modules.towers import VisionEncoder
from vlm_trt.exporter.weight_stream import load_weights
from vlm_trt.families.contract import PictureInputs, of_connector, of_tower
from vlm_trt.families.family import Family
from vlm_trt.families.weights import Weight
from vlm_trt.verification.expected import RegionAsked, Scored
from vlm_trt.verification.passages import Passage

Floats = NDArray[np.float32]
Values = Callable[[Sequence[Weight]], Mapping[str, Tensor]]


def values_of(checkpoint: Checkpoint, model: ModelConfig) -> Values:
    """The weights that a checkpoint makes of its tensors."""
    return lambda weights: load_weights(weights, model, checkpoint)


class StreamedReference:
    """Shown equal to the original implementation by the golden tests."""

    def __init__(
        self,
        values: Values,
        model: ModelConfig,
        family: Family,
        progress: Callable[[str], None],
        device: str = "cpu",
    ) -> None:
        """
        Args:
            values: gives weights in fp32, by name: those of a checkpoint with `values_of`.
            model, family: sizes and layout.
            progress: told which layer is computed.
            device: torch's name of where it computes, and where `values` puts them.
        """
        self.model, self._family, self._values = model, family, values
        self._progress, self._device = progress, device
        self._weights = family.weight_map(model).weights

    def vision(self, pictures: Sequence[PictureInputs]) -> tuple[list[Floats], list[Floats]]:
        """Of each preprocessed picture, one tile each, [patches, width] and [tokens, hidden]."""
        patches = self.vision_encoder(pictures)
        return patches, self.resampler(patches, pictures)

    @torch.inference_mode()
    def vision_encoder(self, pictures: Sequence[PictureInputs]) -> list[Floats]:
        """Of each picture [patches, width]."""
        module = self._skeleton(Component.VISION_ENCODER)
        assert isinstance(module, VisionEncoder | FrameEncoder | WindowEncoder)
        of_each = [of_tower(one, self.model) for one in pictures]
        given = [{name: self._tensor(array) for name, array in one.items()} for one in of_each]
        with self._filled(Component.VISION_ENCODER, module, ""):
            residuals = [module.embed(one["pixel_values"]) for one in given]
        told = [module.lie(**{name: array for name, array in one.items() if name != "pixel_values"}) for one in given]
        for at, layer in enumerate(module.layers):
            with self._filled(Component.VISION_ENCODER, layer, f"layers.{at}."):
                self._progress(f"the model's vision encoder: layer {at + 1} of {len(module.layers)}")
                residuals = [layer(one, lie) for one, lie in zip(residuals, told, strict=True)]
        with self._filled(Component.VISION_ENCODER, module, ""):
            return [_numpy(module.finish(one))[0] for one in residuals]

    @torch.inference_mode()
    def resampler(self, vision_features: Sequence[Floats], pictures: Sequence[PictureInputs]) -> list[Floats]:
        """Of each picture [patches, width] → [tokens, hidden]."""
        module, found = self._skeleton(Component.RESAMPLER), []
        with self._filled(Component.RESAMPLER, module, ""):
            for seen, picture in zip(vision_features, pictures, strict=True):
                others = {name: self._tensor(array) for name, array in of_connector(picture, self.model).items()}
                found.append(_numpy(module(self._tensor(seen)[None], **others))[0])
        return found

    @torch.inference_mode()
    def scored(self, passages: Sequence[Passage], features: Sequence[Floats]) -> list[Scored]:
        """What each passage ends in, at the end of each of its runs.

        Args:
            passages: any number of them.
            features: of every picture [tokens, hidden].
        """
        module = self._skeleton(Component.DECODER)
        assert isinstance(module, Decoder)
        ids, rows, step = self._packed(passages, [len(one) for one in features])
        stacked = self._tensor(np.concatenate(features))
        with self._filled(Component.DECODER, module.embedding, "embedding."):
            residual = module.embed(ids, stacked, rows)
        decoder = self.model.decoder
        empty = torch.zeros(1, decoder.kv_heads, ids.shape[1], decoder.head_dim, device=self._device)
        for at, layer in enumerate(module.layers):
            with self._filled(Component.DECODER, layer, f"layers.{at}."):
                self._progress(f"the model's decoder: layer {at + 1} of {decoder.layers}")
                residual = layer(residual, step, empty, empty)[0]
        starts = np.cumsum([0, *(len(passage.ids) for passage in passages)])
        ends = [start + end - 1 for start, one in zip(starts, passages, strict=False) for end in one.ends]
        head = "embedding." if decoder.tied_head else "lm_head."
        with (
            self._filled(Component.DECODER, module.final_norm, "final_norm."),
            self._filled(Component.DECODER, module.head, head),
        ):
            logits = _numpy(module.logits(residual[0, ends]))
        of_each = np.cumsum([len(passage.ends) for passage in passages])[:-1]
        if self.model.region is None:
            return [Scored(one, None) for one in np.split(logits, of_each)]
        hidden = _numpy(residual[0, ends])
        return [Scored(*one) for one in zip(np.split(logits, of_each), np.split(hidden, of_each), strict=True)]

    @torch.inference_mode()
    def region(self, asked: RegionAsked) -> dict[str, Floats]:
        """The outputs of the region heads by name."""
        module = self._skeleton(Component.REGION)
        names = ("coordinate_logits", "size_logits", "coordinate_features", "size_features")
        with self._filled(Component.REGION, module, ""):
            given = (self._tensor(one) for one in (asked.hidden_states, asked.coordinate, asked.size))
            return {name: _numpy(one) for name, one in zip(names, module(*given), strict=True)}

    def _packed(self, passages: Sequence[Passage], tokens: Sequence[int]) -> tuple[Tensor, Tensor, Step]:
        """All passages one after the other as one sequence: ids and image rows [1, ids], and a step whose mask keeps
        them apart.

        Args:
            passages: any number of them.
            tokens: of every picture.
        """
        decoder, firsts = self.model.decoder, np.cumsum([0, *tokens])
        rows, tables = [], []
        for one in passages:
            # Its pictures' rows, one picture after the other, among those of all pictures.
            theirs = [np.arange(firsts[at], firsts[at + 1]) for at in one.pictures]
            every = np.concatenate([*theirs, np.zeros(1, np.int64)])
            rows.append(np.where(one.rows < 0, -1, every[one.rows.clip(0)]))
            table = self._family.position_table(decoder, one.shape, int(one.positions[-1]) + 1)
            at = one.positions
            tables.append(
                (table.cos[at], table.sin[at], table.query_scale[at], table.attend_until[at], table.attend_from[at])
            )
        cos, sin, scale, until, start = (self._tensor(np.concatenate(part)) for part in zip(*tables, strict=True))
        owner = self._tensor(np.repeat(np.arange(len(passages)), [len(one.ids) for one in passages]))
        own = self._tensor(np.concatenate([one.positions for one in passages]))
        mask = (owner[:, None] == owner[None]) & (own[None] <= until[:, None])
        near = None if decoder.window is None else (mask & (own[None] >= start[:, None]))[None, None]
        query_scale = scale[None, None, :, None] if decoder.logn_attention else None
        all_ids = np.concatenate([np.where(one.rows < 0, one.ids, 0) for one in passages])
        first = self._tensor(np.zeros(1, np.int64))
        step = Step(cos[None], sin[None], query_scale, mask[None, None], near, first, len(all_ids))
        return self._tensor(all_ids)[None], self._tensor(np.concatenate(rows))[None], step

    def _tensor(self, values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _skeleton(self, component: Component) -> nn.Module:
        """The component's module without weights."""
        with torch.device("meta"):
            return build_module(component, self.model, Precision.FP32)

    @contextmanager
    def _filled(self, component: Component, part: nn.Module, prefix: str) -> Iterator[None]:
        """A part of a component that has its weights meanwhile.

        Args:
            component: whose part it is.
            part: the module; of a whole component all but its layers.
            prefix: of the names of its weights.
        """
        own = [
            weight
            for weight in self._weights
            if weight.component is component
            and weight.name.startswith(prefix)
            and (prefix or not _in_layer(weight.name))
        ]
        values = self._values(own)
        named = {name.removeprefix(prefix): value for name, value in values.items()}
        missing = part.load_state_dict(named, strict=False, assign=True)
        assert not missing.unexpected_keys and all(map(_in_layer, missing.missing_keys)), missing
        del values, named
        try:
            yield
        finally:
            part.to("meta")


def _in_layer(name: str) -> bool:
    return name.startswith("layers.")


def _numpy(tensor: Tensor) -> Floats:
    values: Floats = tensor.cpu().numpy()
    return values
