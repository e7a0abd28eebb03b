"""What transformers' configuration classes have where a published config.json says nothing.

Published configs hold only what differs from their class, so these values are part of the models: LLaVA-1.5 7B gives
neither its hidden size nor its number of layers.

Source: the classes named below in transformers 4.36.0, 4.44.2 and 5.23.0 as far as they have them, which agree, except
on Gemma 2's sizes and `query_pre_attn_scalar` (width 3072 and 224 in 4.44, 2304 and 256 in 5.23): those have to stand
in the file. Qwen2-VL's and Qwen2.5-VL's are of 5.23.0.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

ROPE_BASE = 10_000.0  # `rope_theta` of all of them but Qwen's decoder

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
_QWEN2_TEXT = {  # Qwen2VLTextConfig, Qwen2_5_VLTextConfig; the base is their `default_theta`
    "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5, "use_sliding_window": False, "eos_token_id": 151645, "tie_word_embeddings": False,
}  # fmt: skip
QWEN2_ROPE_BASE = 1_000_000.0
_QWEN2_TOWER = {  # what Qwen2VLVisionConfig and Qwen2_5_VLVisionConfig have in common
    "depth": 32, "num_heads": 16, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_QWEN2_VL_VISION = {  # Qwen2VLVisionConfig
    **_QWEN2_TOWER, "embed_dim": 1280, "hidden_size": 3584, "hidden_act": "quick_gelu", "mlp_ratio": 4,
}  # fmt: skip
_QWEN2_5_VL_VISION = {  # Qwen2_5_VLVisionConfig
    **_QWEN2_TOWER, "hidden_size": 3584, "hidden_act": "silu", "intermediate_size": 3420, "window_size": 112,
    "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 4,
}  # fmt: skip
_QWEN2_VL = {  # Qwen2VLConfig, Qwen2_5_VLConfig
    "image_token_id": 151655, "tie_word_embeddings": False,
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
        "qwen2_vl": _QWEN2_VL,
        "qwen2_vl_text": _QWEN2_TEXT,
        "qwen2_vl_vision": _QWEN2_VL_VISION,
        "qwen2_5_vl": _QWEN2_VL,
        "qwen2_5_vl_text": _QWEN2_TEXT,
        "qwen2_5_vl_vision": _QWEN2_5_VL_VISION,
    }
)

# What LlavaConfig, PaliGemmaConfig, SmolVLMConfig and Qwen's make of a section that is not there; it is not the class's
# own.
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
        "qwen2_vl.vision_config": {},
        "qwen2_5_vl.vision_config": {},
    }
)  # fmt: skip

# Of videos. Sources: SmolVLM2's published preprocessor files; qwen-vl-utils, which Qwen's model cards name, and the
# bounds of Qwen2VLVideoProcessor, which has no rate of its own.
SPLIT_FRAMES: Mapping[str, Any] = MappingProxyType({"rate": 1.0, "least": 1, "most": 64})
ANY_SIZE_FRAMES: Mapping[str, Any] = MappingProxyType({"rate": 2.0, "least": 4, "most": 768})

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
        "Qwen2VLImageProcessor": {
            **_CLIP_PIXELS, "size": {"shortest_edge": 3136, "longest_edge": 1003520}, "patch_size": 14,
            "temporal_patch_size": 2, "merge_size": 2,
        },
    }
)  # fmt: skip
