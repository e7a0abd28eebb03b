"""Which module a component is."""

import torch
from torch import nn

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import FrameTower, Tower, WindowTower
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.modules.any_size_towers import FrameEncoder, WindowEncoder
from vlm_trt.exporter.modules.connectors import connector
from vlm_trt.exporter.modules.decoder import Decoder
from vlm_trt.exporter.modules.region import Region
from vlm_trt.exporter.modules.sampler import Sampler
from vlm_trt.exporter.modules.towers import square_encoder

TORCH_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}


def build_module(component: Component, model: ModelConfig, precision: Precision) -> nn.Module:
    """The component's module on the current default device, its weights not yet set, in eval mode."""
    dtype = TORCH_DTYPES[precision]
    match component:
        case Component.VISION_ENCODER:
            return vision_encoder(model.vision, dtype).eval()
        case Component.RESAMPLER:
            return connector(model, dtype).eval()
        case Component.DECODER:
            return Decoder(model.decoder, dtype, gives_hidden=model.region is not None).eval()
        case Component.REGION:
            assert model.region is not None
            return Region(model.region, dtype).eval()
        case Component.SAMPLER:
            return Sampler(model.decoder.vocab_size).eval()


def vision_encoder(tower: Tower, dtype: torch.dtype) -> nn.Module:
    """The module of a tower."""
    match tower:
        case FrameTower():
            return FrameEncoder(tower, dtype)
        case WindowTower():
            return WindowEncoder(tower, dtype)
        case _:
            return square_encoder(tower, dtype)
