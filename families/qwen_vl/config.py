"""Qwen-VL's `config.json` and `generation_config.json` → our frozen configs.

Every key is known: used, required to have one value, or harmless. An unknown key is an error, because a model that
differs in something we did not read would be exported wrong.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_trt.bundle.config import DecoderConfig, GenerationDefaults, ModelConfig, ResamplerConfig, VisionConfig
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError

FAMILY = "qwen_vl"

# The original fixes the ViT's position table at 256 entries, and the resampler's head size at 128.
_POSITION_GRID = 16
_RESAMPLER_HEAD_DIM = 128
_DEFAULT_QUERIES = 256
_VISION_NORM_EPS = 1e-6

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
    "use_logn_attn", "visual",
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
    raw = _read_json(folder / "config.json")
    _check_keys(raw, folder / "config.json")
    get = _Reader(raw, folder / "config.json")
    visual = _Reader(get.section("visual"), folder / "config.json", "visual.")
    return ModelConfig(
        family=FAMILY,
        vision=_vision(visual),
        resampler=_resampler(visual, get),
        decoder=_decoder(get),
        generation=_generation(folder / "generation_config.json"),
    )


def read_image_start_id(folder: Path) -> int | None:
    """`visual.image_start_id`, which must be the tokenizer's id of `<img>`; None where the config omits it."""
    path = folder / "config.json"
    section = _Reader(_read_json(path), path).section("visual")
    return None if section.get("image_start_id") is None else _Reader(section, path, "visual.").count("image_start_id")


def _vision(visual: "_Reader") -> VisionConfig:
    width, heads = visual.count("width"), visual.count("heads")
    image_size, patch_size = visual.count("image_size"), visual.count("patch_size")
    if width % heads:
        raise visual.error("width", f"is {width}, not divisible by visual.heads {heads}")
    if image_size % patch_size:
        raise visual.error("image_size", f"is {image_size}, not divisible by visual.patch_size {patch_size}")
    return VisionConfig(
        image_size=image_size,
        patch_size=patch_size,
        width=width,
        layers=visual.count("layers"),
        heads=heads,
        mlp_width=int(width * visual.number("mlp_ratio")),
        norm_eps=_VISION_NORM_EPS,
        position_grid=_POSITION_GRID,
    )


def _resampler(visual: "_Reader", get: "_Reader") -> ResamplerConfig:
    hidden, queries = visual.count("output_dim"), visual.count("n_queries", _DEFAULT_QUERIES)
    if hidden != get.count("hidden_size"):
        raise visual.error("output_dim", f"is {hidden} but hidden_size is {get.count('hidden_size')}")
    if hidden % _RESAMPLER_HEAD_DIM:
        raise visual.error("output_dim", f"is {hidden}, not divisible by the resampler's head size 128")
    if math.isqrt(queries) ** 2 != queries:
        raise visual.error("n_queries", f"is {queries}, not a square number")
    return ResamplerConfig(
        queries=queries,
        vision_width=visual.count("width"),
        hidden=hidden,
        heads=hidden // _RESAMPLER_HEAD_DIM,
        norm_eps=_VISION_NORM_EPS,
    )


def _decoder(get: "_Reader") -> DecoderConfig:
    hidden, heads, head_dim = (
        get.count("hidden_size"),
        get.count("num_attention_heads"),
        get.count("kv_channels"),
    )
    if heads * head_dim != hidden:
        raise get.error("hidden_size", f"is {hidden}, not num_attention_heads {heads} × kv_channels {head_dim}")
    if head_dim % 2:
        raise get.error("kv_channels", f"is {head_dim}; rotary embedding needs an even head size")
    return DecoderConfig(
        vocab_size=get.count("vocab_size"),
        hidden=hidden,
        layers=get.count("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        mlp_width=get.count("intermediate_size") // 2,
        norm_eps=get.number("layer_norm_epsilon"),
        rotary_dim=head_dim,
        rope_base=get.number("rotary_emb_base", 10000.0),
        trained_tokens=get.count("seq_length"),
        max_positions=get.count("max_position_embeddings", 8192),
        dynamic_ntk=get.flag("use_dynamic_ntk"),
        logn_attention=get.flag("use_logn_attn"),
    )


def _generation(path: Path) -> GenerationDefaults:
    raw = _read_json(path)
    get = _Reader(raw, path)
    chat_format = raw.get("chat_format")
    if chat_format not in ("chatml", "raw"):
        raise get.error("chat_format", f'is {chat_format!r}; "chatml" (Qwen-VL-Chat) and "raw" (Qwen-VL) are known')
    return GenerationDefaults(
        chat_format=chat_format,
        max_new_tokens=get.count("max_new_tokens", 512),
        do_sample=get.flag("do_sample", False),
        temperature=get.number("temperature", 1.0),
        top_k=int(get.number("top_k", 0)),
        top_p=get.number("top_p", 1.0),
        repetition_penalty=get.number("repetition_penalty", 1.0),
        max_window_tokens=get.count("max_window_size", 6144),
    )


def _check_keys(raw: Mapping[str, Any], path: Path) -> None:
    if raw.get("model_type", "qwen") != "qwen" or "visual" not in raw:
        kind = raw.get("model_type", "nothing")
        raise UnsupportedError(
            f"{path}: model_type is {kind!r}{'' if 'visual' in raw else ' and there is no visual section'}; "
            "this version exports Qwen-VL and Qwen-VL-Chat (model_type 'qwen' with a visual section)"
        )
    for key, wanted in _REQUIRED.items():
        if key in raw and raw[key] != wanted:
            raise UnsupportedError(f"{path}: {key} is {raw[key]!r}; only {wanted!r} is supported")
    visual = _Reader(raw, path).section("visual")
    known = _USED | _HARMLESS | set(_REQUIRED)
    unknown = sorted(key for key in raw if key not in known and not key.startswith("_"))
    unknown += sorted(f"visual.{key}" for key in visual if key not in _VISUAL_KEYS)
    if unknown:
        raise UnsupportedError(
            f"{path}: unknown key {unknown[0]!r}{f' and {len(unknown) - 1} more' if unknown[1:] else ''}; it may "
            "change the model's output, so nothing is exported. Remove it if you know that it does not"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; copy it from the published checkpoint") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}; copy it again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds {type(raw).__name__}, not a JSON object")
    return raw


class _Reader:
    """Typed access to one JSON object; a missing or mistyped key is a sentence with its file and name."""

    def __init__(self, raw: Mapping[str, Any], path: Path, prefix: str = "") -> None:
        self._raw, self._path, self._prefix = raw, path, prefix

    def error(self, key: str, what: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {self._prefix}{key} {what}")

    def section(self, key: str) -> Mapping[str, Any]:
        value = self._raw.get(key)
        if not isinstance(value, dict):
            raise self.error(key, f"is {value!r}, not an object")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self._raw.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(key, "is missing" if value is None else f"is {value!r}, not a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self._raw.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise self.error(key, "is missing" if value is None else f"is {value!r}, not a finite number ≥ 0")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._raw.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "is missing" if value is None else f"is {value!r}, not true or false")
        return value
