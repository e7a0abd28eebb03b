"""Qwen-VL's `config.json` and `generation_config.json` → our frozen configs.

Every key is known: used, required to have one value, or harmless. An unknown key is an error, because a model that
differs in something we did not read would be exported wrong.
"""

import math
from pathlib import Path
from typing import Any

from vlm_trt.bundle import config as ranges
from vlm_trt.bundle import parts
from vlm_trt.bundle.config import ChatFormat, DecoderConfig, GenerationDefaults, ModelConfig
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.fields import Fields, Within
from vlm_trt.bundle.parts import Activation, OpenClipTower, ResamplerConnector, SerialBlock
from vlm_trt.bundle.picture_rules import Squash
from vlm_trt.bundle.reading import shown
from vlm_trt.families.config_files import read_fields

FAMILY = "qwen_vl"

# The original fixes the ViT's position table at 256 entries, and the resampler's head size at 128.
_POSITION_GRID = 16
_RESAMPLER_HEAD_DIM = 128
_DEFAULT_QUERIES = 256
_VISION_NORM_EPS = 1e-6
# Source: Qwen-VL's `visual.py`: Resize((size, size), BICUBIC) without keeping the aspect, ToTensor, Normalize with
# CLIP's mean and deviation.
_PICTURES = Squash(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
_MLP_RATIO = Within(0.01, 64.0)
_TOKEN_ID = Within(0, 1 << 24)

# Keys whose other values this exporter does not carry out.
_REQUIRED: dict[str, Any] = {
    "model_type": "qwen",
    "rotary_pct": 1.0,
    "no_bias": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
    "apply_residual_connection_post_layernorm": False,
    "pos_emb": "rotary",
    "use_cache_quantization": False,
}
_USED = {
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "kv_channels", "intermediate_size",
    "layer_norm_epsilon", "max_position_embeddings", "seq_length", "rotary_emb_base", "use_dynamic_ntk",
    "use_logn_attn", "visual", "quantization_config",
}  # fmt: skip
# Training, storage and implementation choices: they change no output in fp32.
_HARMLESS = {
    "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "bf16", "fp16", "fp32",
    "emb_dropout_prob", "attn_dropout_prob", "resid_pdrop", "initializer_range", "use_cache", "use_flash_attn",
    "use_cache_kernel", "softmax_in_fp32", "onnx_safe", "tokenizer_type", "tokenizer_class", "bos_token_id",
    "eos_token_id", "pad_token_id", "padded_vocab_size", "gradient_checkpointing", "output_attentions",
    "output_hidden_states", "return_dict",
}  # fmt: skip
_VISUAL_KEYS = {
    "heads", "image_size", "layers", "mlp_ratio", "output_dim", "patch_size", "width", "image_start_id", "n_queries",
}  # fmt: skip


def read_config(folder: Path) -> ModelConfig:
    """The model's configuration.

    Args:
        folder: checkpoint folder in the official layout.
    Returns:
        Sizes, positions and generation defaults, all resolved.
    Raises:
        CheckpointError: a file or key is missing, not JSON or of the wrong type.
        UnsupportedError: another model, or a variant this exporter does not carry out.
    """
    get = read_fields(folder / "config.json")
    _check_keys(get, folder / "config.json")
    visual = get.section("visual")
    return ModelConfig(
        family=FAMILY,
        pictures=_PICTURES,
        vision=_vision(visual),
        connector=_connector(visual, get),
        decoder=_decoder(get),
        generation=_generation(read_fields(folder / "generation_config.json")),
    )


def read_image_start_id(folder: Path) -> int | None:
    """`visual.image_start_id`, which must be the tokenizer's id of `<img>`; None where the config omits it."""
    visual = read_fields(folder / "config.json").section("visual")
    return None if visual.raw.get("image_start_id") is None else visual.whole("image_start_id", _TOKEN_ID)


def _vision(visual: Fields) -> OpenClipTower:
    width, heads = visual.whole("width", parts.WIDTH), visual.whole("heads", parts.HEADS)
    image_size, patch_size = visual.whole("image_size", parts.SIDE), visual.whole("patch_size", parts.SIDE)
    mlp_width = int(width * visual.number("mlp_ratio", _MLP_RATIO))
    if width % heads:
        raise visual.wrong("width", f"is {width}, not divisible by visual.heads {heads}")
    if image_size % patch_size:
        raise visual.wrong("image_size", f"is {image_size}, not divisible by visual.patch_size {patch_size}")
    if mlp_width not in parts.MLP_WIDTH:
        raise visual.wrong("mlp_ratio", f"makes an MLP of {mlp_width}, not {parts.MLP_WIDTH}")
    return OpenClipTower(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=visual.whole("layers", parts.LAYERS),
        heads=heads,
        mlp_width=mlp_width,
        norm_eps=_VISION_NORM_EPS,
        position_grid=_POSITION_GRID,
    )


def _connector(visual: Fields, get: Fields) -> ResamplerConnector:
    hidden = visual.whole("output_dim", parts.WIDTH)
    queries = visual.whole("n_queries", parts.TOKENS, _DEFAULT_QUERIES)
    if hidden != (wanted := get.whole("hidden_size", parts.WIDTH)):
        raise visual.wrong("output_dim", f"is {hidden} but hidden_size is {wanted}")
    if hidden % _RESAMPLER_HEAD_DIM:
        raise visual.wrong("output_dim", f"is {hidden}, not divisible by the resampler's head size 128")
    if math.isqrt(queries) ** 2 != queries:
        raise visual.wrong("n_queries", f"is {queries}, not a square number")
    return ResamplerConnector(
        tokens=queries,
        vision_width=visual.whole("width", parts.WIDTH),
        hidden=hidden,
        heads=hidden // _RESAMPLER_HEAD_DIM,
        norm_eps=_VISION_NORM_EPS,
    )


def _decoder(get: Fields) -> DecoderConfig:
    hidden, heads, head_dim = (
        get.whole("hidden_size", parts.WIDTH),
        get.whole("num_attention_heads", parts.HEADS),
        get.whole("kv_channels", parts.HEAD_DIM),
    )
    if heads * head_dim != hidden:
        raise get.wrong("hidden_size", f"is {hidden}, not num_attention_heads {heads} × kv_channels {head_dim}")
    if head_dim % 2:
        raise get.wrong("kv_channels", f"is {head_dim}; rotary embedding needs an even head size")
    return DecoderConfig(
        vocab_size=get.whole("vocab_size", parts.TOKENS),
        hidden=hidden,
        layers=get.whole("num_hidden_layers", parts.LAYERS),
        block=SerialBlock(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            attention_scale=head_dim**-0.5,
            mlp_width=get.whole("intermediate_size", Within(2, 2 * int(parts.MLP_WIDTH.high))) // 2,
            activation=Activation.SILU,
            norm_eps=get.number("layer_norm_epsilon", parts.EPSILON),
            qkv_bias=True,
        ),
        embedding_scale=1.0,
        tied_head=False,
        logit_cap=None,
        rotary_dim=head_dim,
        rope_base=get.number("rotary_emb_base", ranges.ROPE_BASE, 10000.0),
        trained_tokens=get.whole("seq_length", ranges.TRAINED_TOKENS),
        max_positions=get.whole("max_position_embeddings", parts.TOKENS, 8192),
        dynamic_ntk=get.flag("use_dynamic_ntk"),
        logn_attention=get.flag("use_logn_attn"),
    )


def _generation(get: Fields) -> GenerationDefaults:
    chat_format = get.raw.get("chat_format")
    if chat_format not in (ChatFormat.CHATML, ChatFormat.RAW):
        raise get.wrong(
            "chat_format", f'is {shown(chat_format)}; "chatml" (Qwen-VL-Chat) and "raw" (Qwen-VL) are known'
        )
    return GenerationDefaults(
        chat_format=ChatFormat(chat_format),
        stop_ids=(),
        max_new_tokens=get.whole("max_new_tokens", parts.TOKENS, 512),
        do_sample=get.flag("do_sample", False),
        temperature=get.number("temperature", ranges.TEMPERATURE, 1.0),
        top_k=get.whole("top_k", ranges.TOP_K, 0),
        top_p=get.number("top_p", ranges.TOP_P, 1.0),
        repetition_penalty=get.number("repetition_penalty", ranges.PENALTY, 1.0),
        max_window_tokens=get.whole("max_window_size", parts.TOKENS, 6144),
    )


def _check_keys(get: Fields, path: Path) -> None:
    raw = get.raw
    if raw.get("model_type", "qwen") != "qwen" or "visual" not in raw:
        kind = raw.get("model_type", "nothing")
        raise UnsupportedError(
            f"{path}: model_type is {shown(kind)}{'' if 'visual' in raw else ' and there is no visual section'}; "
            "this version exports Qwen-VL and Qwen-VL-Chat (model_type 'qwen' with a visual section)"
        )
    for key, wanted in _REQUIRED.items():
        if key in raw and raw[key] != wanted:
            raise UnsupportedError(f"{path}: {key} is {shown(raw[key])}; only {wanted!r} is supported")
    visual = get.section("visual").raw
    known = _USED | _HARMLESS | set(_REQUIRED)
    unknown = sorted(key for key in raw if key not in known and not key.startswith("_"))
    unknown += sorted(f"visual.{key}" for key in visual if key not in _VISUAL_KEYS)
    if unknown:
        raise UnsupportedError(
            f"{path}: unknown key {unknown[0]!r}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}; it may "
            "change the model's output, so nothing is exported. Remove it if you know that it does not"
        )
