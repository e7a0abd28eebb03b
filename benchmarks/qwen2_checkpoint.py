"""Qwen's decoder as a Qwen2 checkpoint, which other engines read: the same weights under other names.

Both compute the same while a prompt is no longer than what Qwen was trained on: beyond, Qwen stretches its rotary
embedding and scales its queries.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.exporter.checkpoint import Checkpoint


def write_qwen2(target: Path, checkpoint: Checkpoint, decoder: DecoderConfig) -> None:
    """The decoder as a Qwen2 checkpoint in fp32."""
    words = {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"}  # the model builder wants some tokenizer
    files = {
        "config.json": qwen2_config(decoder),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
        "tokenizer.json": {"version": "1.0", "added_tokens": [], "model": words},
    }
    target.mkdir(parents=True)
    for name, value in files.items():
        (target / name).write_text(json.dumps(value))
    save_file(qwen2_weights(checkpoint, decoder), target / "model.safetensors", {"format": "pt"})


def qwen2_weights(checkpoint: Checkpoint, decoder: DecoderConfig) -> dict[str, torch.Tensor]:
    """Qwen's decoder under Qwen2's names."""
    found = {
        "model.embed_tokens.weight": checkpoint.read("transformer.wte.weight"),
        "model.norm.weight": checkpoint.read("transformer.ln_f.weight"),
        "lm_head.weight": checkpoint.read("lm_head.weight"),
    }
    inner = {
        "ln_1": "input_layernorm", "ln_2": "post_attention_layernorm", "attn.c_proj": "self_attn.o_proj",
        "mlp.w1": "mlp.up_proj", "mlp.w2": "mlp.gate_proj", "mlp.c_proj": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(decoder.layers):
        theirs, new = f"transformer.h.{layer}.", f"model.layers.{layer}."
        found |= {f"{new}{name}.weight": checkpoint.read(f"{theirs}{old}.weight") for old, name in inner.items()}
        for kind in ("weight", "bias"):
            parts = checkpoint.read(f"{theirs}attn.c_attn.{kind}").chunk(3)
            names = (f"{new}self_attn.{part}_proj.{kind}" for part in "qkv")
            found |= dict(zip(names, parts, strict=True))
    return {name: tensor.float().contiguous() for name, tensor in found.items()}


def qwen2_config(decoder: DecoderConfig) -> dict[str, object]:
    return {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": decoder.hidden,
        "num_hidden_layers": decoder.layers, "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.kv_heads, "intermediate_size": decoder.mlp_width, "hidden_act": "silu",
        "vocab_size": decoder.vocab_size, "rms_norm_eps": decoder.block.norm_eps, "rope_theta": decoder.rope_base,
        "max_position_embeddings": decoder.trained_tokens, "tie_word_embeddings": False, "torch_dtype": "float32",
        "bos_token_id": 151_643, "eos_token_id": 151_643, "use_sliding_window": False,
    }  # fmt: skip
