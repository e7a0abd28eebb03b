"""The weights are those of the torch modules: every parameter, by name and shape, and none else."""

import pytest
import torch

from tests.families.published.published_configs import GOLDEN
from vlm_trt.bundle.component import Component
from vlm_trt.exporter.modules.build import vision_encoder
from vlm_trt.exporter.modules.connectors import connector
from vlm_trt.exporter.modules.decoder import Decoder
from vlm_trt.families.family import family_of


@pytest.mark.parametrize("name", ["llava15", "paligemma", "paligemma2", "smolvlm2", "qwen2_vl", "qwen2_5_vl"])
def test_names_and_shapes(name: str) -> None:
    family = family_of(GOLDEN / name)
    model = family.read_config(GOLDEN / name)
    modules = {
        Component.VISION_ENCODER: vision_encoder(model.vision, torch.float32),
        Component.RESAMPLER: connector(model, torch.float32),
        Component.DECODER: Decoder(model.decoder, torch.float32),
    }
    for component, module in modules.items():
        ours = {one.name: one.shape for one in family.weight_map(model).weights if one.component is component}
        assert ours == {key: tuple(value.shape) for key, value in module.named_parameters()}
