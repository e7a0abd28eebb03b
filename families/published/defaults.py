"""What transformers' configuration classes have where a published config.json says nothing.

Published configs hold only what differs from their class, so these values are part of the models: LLaVA-1.5 7B gives
neither its hidden size nor its number of layers.

Source: the classes named below in transformers 4.36.0, 4.44.2 and 5.23.0 as far as they have them, which agree, except
on Gemma 2's sizes and `query_pre_attn_scalar` (width 3072 and 224 in 4.44, 2304 and 256 in 5.23): those have to stand
in the file.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ROPE_BASE = 10_000.0  # `rope_theta` of all of them

_LLAMA = {  # LlamaConfig
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
_GEMMA = {  # GemmaConfig
    "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "eos_token_id": 1, "tie_word_embeddings": True,
}  # fmt: skip
_GEMMA2 = {  # Gemma2Config
    "vocab_size": 256000, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6, "eos_token_id": 1, "tie_word_embeddings": True, "sliding_window": 4096,
    "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0,
}  # fmt: skip
_CLIP = {  # CLIPVisionConfig
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_SIGLIP = {  # SiglipVisionConfig
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
_LLAVA = {  # LlavaConfig
    "image_token_index": 32000, "projector_hidden_act": "gelu", "vision_feature_select_strategy": "default",
    "vision_feature_layer": -2, "multimodal_projector_bias": True,
}  # fmt: skip
_PALIGEMMA = {  # PaliGemmaConfig
    "image_token_index": 256000, "projection_dim": 2048,
}  # fmt: skip
_SMOLVLM = {  # SmolVLMConfig
    "image_token_id": 128257, "tie_word_embeddings": False, "scale_factor": 2,
}  # fmt: skip
_SMOLVLM_VISION = {  # SmolVLMVisionConfig
    "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": _LLAMA,
        "gemma": _GEMMA,
        "gemma2": _GEMMA2,
        "clip_vision_model": _CLIP,
        "siglip_vision_model": _SIGLIP,
        "llava": _LLAVA,
        "paligemma": _PALIGEMMA,
        "smolvlm": _SMOLVLM,
        "smolvlm_vision": _SMOLVLM_VISION,
    }
)

# What LlavaConfig, PaliGemmaConfig and SmolVLMConfig make of a section that is not there; it is not the class's own.
ABSENT_SECTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llava.text_config": {},
        "llava.vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 336, "patch_size": 14,
        },
        "paligemma.text_config": {
            "vocab_size": 257152, "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18,
            "num_attention_heads": 8, "num_key_value_heads": 1,
        },
        "paligemma.vision_config": {
            "hidden_size": 1152, "intermediate_size": 4096, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14,
        },
        "smolvlm.text_config": {"rms_norm_eps": 1e-5},
        "smolvlm.vision_config": {},
    }
)  # fmt: skip

_CLIP_PIXELS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_CROPPED = {
    **_CLIP_PIXELS, "size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
    "do_pad": False,
}  # fmt: skip

# By `image_processor_type`, its endings "Fast" and "Pil" left out.
PROCESSOR_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "CLIPImageProcessor": _CROPPED,
        "LlavaImageProcessor": _CROPPED,
        "SiglipImageProcessor": {
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224, "width": 224},
            "do_center_crop": False, "do_pad": False,
        },
        "SmolVLMImageProcessor": {
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"longest_edge": 1456},
            "max_image_size": {"longest_edge": 364}, "do_image_splitting": True, "resample": 1,
        },
    }
)  # fmt: skip
