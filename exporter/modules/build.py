"""Which module a component is."""

import torch
from torch import nn

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.exporter.modules.connectors import connector
from vlm_trt.exporter.modules.decoder import Decoder
from vlm_trt.exporter.modules.sampler import Sampler
from vlm_trt.exporter.modules.towers import vision_encoder

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
            return Decoder(model.decoder, dtype).eval()
        case Component.SAMPLER:
            return Sampler(model.decoder.vocab_size).eval()
