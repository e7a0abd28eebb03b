"""config.json of published checkpoints, sparse as they are.

Source: the copies that public repositories hold of llava-hf/llava-1.5-7b-hf's and -13b-hf's and, key by key, of
google/paligemma's and paligemma2's, and HuggingFaceTB/SmolVLM2's of 500M; those of 256M and 2.2B follow from its sizes.
Qwen's are from memory, but for the decoder's sizes of 7B, the sparse tower of Qwen2.5-VL and both processors' files.
"""

import json
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

Config = dict[str, Any]
GOLDEN = ROOT / "tests" / "golden"

LLAVA_7B: Config = {
    "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000,
    "model_type": "llava", "pad_token_id": 32001, "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.36.0.dev0",
    "vision_config": {
        "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "vocab_size": 32064,
}  # fmt: skip
LLAVA_13B: Config = {
    **LLAVA_7B,
    "text_config": {
        **LLAVA_7B["text_config"], "_name_or_path": "lmsys/vicuna-13b-v1.5", "hidden_size": 5120,
        "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 40,
    },
}  # fmt: skip


def paligemma(side: int) -> Config:
    return {
        "_vocab_size": 257152, "architectures": ["PaliGemmaForConditionalGeneration"], "bos_token_id": 2,
        "eos_token_id": 1, "hidden_size": 2048, "ignore_index": -100, "image_token_index": 257152,
        "model_type": "paligemma", "pad_token_id": 0, "projection_dim": 2048,
        "text_config": {
            "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8,
            "num_hidden_layers": 18, "num_image_tokens": (side // 14) ** 2, "num_key_value_heads": 1,
            "torch_dtype": "float32", "vocab_size": 257216,
        },
        "torch_dtype": "float32", "transformers_version": "4.41.0.dev0",
        "vision_config": {
            "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model",
            "num_attention_heads": 16, "num_hidden_layers": 27, "num_image_tokens": (side // 14) ** 2,
            "patch_size": 14, "projection_dim": 2048, "projector_hidden_act": "gelu_fast", "torch_dtype": "float32",
            "vision_use_head": False, **({} if side == 224 else {"image_size": side}),
        },
    }  # fmt: skip


def paligemma2(**sizes: int) -> Config:
    """Sizes: those of the decoder."""
    first = paligemma(224)
    text = {
        "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 107],
        "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02, "max_position_embeddings": 8192, "model_type": "gemma2", "num_image_tokens": 256,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096,
        "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 257216, **sizes,
    }  # fmt: skip
    width = sizes["hidden_size"]
    vision = {**first["vision_config"], "projection_dim": width, "num_positions": 256}
    return {
        **first, "hidden_size": width, "projection_dim": width, "num_hidden_layers": sizes["num_hidden_layers"],
        "text_config": text, "vision_config": vision,
    }  # fmt: skip


PALIGEMMA2_3B = paligemma2(
    hidden_size=2304, intermediate_size=9216, num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4
)
PALIGEMMA2_10B = paligemma2(
    hidden_size=3584, intermediate_size=14336, num_attention_heads=16, num_hidden_layers=42, num_key_value_heads=8
)
PALIGEMMA2_28B = paligemma2(
    hidden_size=4608, intermediate_size=36864, num_attention_heads=32, num_hidden_layers=46, num_key_value_heads=16,
    head_dim=128, query_pre_attn_scalar=144,
)  # fmt: skip


def smolvlm2(text: Config, vision: Config, scale_factor: int) -> Config:
    side = vision["image_size"]
    return {
        "architectures": ["SmolVLMForConditionalGeneration"], "image_token_id": 49190, "model_type": "smolvlm",
        "pad_token_id": 128002, "scale_factor": scale_factor,
        "text_config": {
            "_flash_attn_2_enabled": True, "architectures": ["VLlama3ForCausalLM"], "is_llama_config": True,
            "max_position_embeddings": 8192, "model_type": "llama", "neftune_noise_alpha": 0.0, "pad_token_id": 2,
            "perceiver_config": {"model_type": "vllama3"}, "pixel_shuffle_factor": scale_factor,
            "qk_layer_norms": False, "rms_norm_eps": 1e-05, "rope_interleaved": False, "torch_dtype": "bfloat16",
            "use_resampler": False, "vocab_size": 49280, **text,
        },
        "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.47.1", "use_cache": False,
        "use_reentrant_checkpointing": False, "vocab_size": 49280,
        "vision_config": {
            "max_image_size": {"longest_edge": side}, "model_type": "smolvlm_vision",
            "size": {"longest_edge": 4 * side}, "tie_word_embeddings": False, "use_base_siglip": False, **vision,
        },
    }  # fmt: skip


_SMALL_TOWER = {"hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16}
SMOLVLM2_256M = smolvlm2(
    {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30,
        "num_key_value_heads": 3, "head_dim": 64, "rope_theta": 100000,
    },
    _SMALL_TOWER,
    4,
)  # fmt: skip
SMOLVLM2_500M = smolvlm2(
    {
        "hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_hidden_layers": 32,
        "num_key_value_heads": 5, "head_dim": 64, "rope_theta": 100000,
    },
    _SMALL_TOWER,
    4,
)  # fmt: skip
SMOLVLM2_2B = smolvlm2(
    {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "head_dim": 64,
        "rope_theta": 130000,
    },
    {"hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14},
    3,
)  # fmt: skip


def qwen2(kind: str, text: Config, vision: Config) -> Config:
    """The flat layout, as all published files have it."""
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "image_token_id": 151655, "initializer_range": 0.02,
        "model_type": kind, "rms_norm_eps": 1e-06, "rope_scaling": {"mrope_section": [16, 24, 24], "type": "mrope"},
        "rope_theta": 1000000.0, "sliding_window": 32768, "torch_dtype": "bfloat16", "transformers_version": "4.41.2",
        "use_cache": True, "use_sliding_window": False, "video_token_id": 151656, "vision_end_token_id": 151653,
        "vision_start_token_id": 151652, "vision_token_id": 151654, "vision_config": vision, **text,
    }  # fmt: skip


_QWEN2_SMALL_TEXT = {
    "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 32768, "max_window_layers": 28,
    "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2, "tie_word_embeddings": True,
    "vocab_size": 151936,
}  # fmt: skip
_QWEN2_LARGE_TEXT = {
    "hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
    "vocab_size": 152064,
}  # fmt: skip
_QWEN2_TOWER = {
    "depth": 32, "embed_dim": 1280, "hidden_size": 3584, "in_chans": 3, "mlp_ratio": 4, "num_heads": 16,
    "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
}  # fmt: skip
_QWEN2_LARGEST_TEXT = {
    **_QWEN2_LARGE_TEXT, "hidden_size": 8192, "intermediate_size": 29568, "max_window_layers": 80,
    "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
}  # fmt: skip
QWEN2_VL_2B = qwen2("qwen2_vl", _QWEN2_SMALL_TEXT, {**_QWEN2_TOWER, "hidden_size": 1536})
QWEN2_VL_7B = qwen2("qwen2_vl", _QWEN2_LARGE_TEXT, _QWEN2_TOWER)
QWEN2_VL_72B = qwen2("qwen2_vl", _QWEN2_LARGEST_TEXT, {**_QWEN2_TOWER, "hidden_size": 8192})
QWEN2_5_VL_3B = qwen2(
    "qwen2_5_vl",
    {
        **_QWEN2_SMALL_TEXT, "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 128000,
        "max_window_layers": 70, "num_attention_heads": 16, "num_hidden_layers": 36,
    },
    {
        "depth": 32, "fullatt_block_indexes": [7, 15, 23, 31], "hidden_act": "silu", "hidden_size": 1280, "in_chans": 3,
        "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048, "patch_size": 14, "spatial_merge_size": 2,
        "spatial_patch_size": 14, "temporal_patch_size": 2, "tokens_per_second": 2, "window_size": 112,
    },
)  # fmt: skip
QWEN2_5_VL_7B = qwen2(
    "qwen2_5_vl",
    {**_QWEN2_LARGE_TEXT, "max_position_embeddings": 128000},
    {"hidden_size": 1280, "in_chans": 3, "spatial_patch_size": 14, "tokens_per_second": 2},
)
QWEN2_5_VL_72B = qwen2(
    "qwen2_5_vl",
    {**_QWEN2_LARGEST_TEXT, "max_position_embeddings": 128000},
    {**QWEN2_5_VL_3B["vision_config"], "intermediate_size": 3456, "out_hidden_size": 8192},
)
QWEN2_PROCESSOR: Config = {
    "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
}  # fmt: skip


def processor_of(name: str, side: int) -> Config:
    """preprocessor_config.json of a golden checkpoint, for pictures of another size."""
    raw: Config = json.loads((GOLDEN / name / "preprocessor_config.json").read_text())
    if raw["image_processor_type"] == "Qwen2VLImageProcessor":  # of any size: `side` is a patch's
        return {**raw, "patch_size": side} if side < 14 else QWEN2_PROCESSOR
    for key in ("size", "crop_size", "max_image_size"):
        if key in raw:
            tiles_across = 4 if key == "size" and "max_image_size" in raw else 1
            raw[key] = dict.fromkeys(raw[key], side * tiles_across)
    return raw


def written(folder: Path, name: str, config: Config, side: int, generation: Config | None = None) -> Path:
    """A folder with these files, and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor_of(name, side)))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def golden(name: str) -> Config:
    raw: Config = json.loads((GOLDEN / name / "config.json").read_text())
    return raw


def changed(config: Config, changes: Config) -> Config:
    """A copy with keys set, `text_config.head_dim` in a section; `...` takes the key away."""
    copy: Config = json.loads(json.dumps(config))
    for key, value in changes.items():
        *sections, last = key.split(".")
        at = copy
        for section in sections:
            at = at[section]
        if value is ...:
            at.pop(last, None)
        else:
            at[last] = value
    return copy
