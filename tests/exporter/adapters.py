"""LoRA adapters as PEFT saves them, with random factors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

PREFIX = "base_model.model."
# As the official fine-tuning of Qwen-VL names them, and three of the vision tower.
TARGETS = (
    "transformer.h.0.attn.c_attn",
    "transformer.h.1.attn.c_proj",
    "transformer.h.0.mlp.w1",
    "transformer.h.1.mlp.w2",
    "transformer.visual.conv1",
    "transformer.visual.transformer.resblocks.0.attn.in_proj",
    "transformer.visual.transformer.resblocks.1.mlp.c_fc",
)


def factors(module: str, shape: tuple[int, ...], rank: int, seed: int) -> dict[str, torch.Tensor]:
    """Both factors of a matrix or convolution."""
    random = torch.Generator().manual_seed(seed)
    ones = (1,) * (len(shape) - 2)
    return {
        f"{PREFIX}{module}.lora_A.weight": torch.randn(rank, *shape[1:], generator=random) * 0.05,
        f"{PREFIX}{module}.lora_B.weight": torch.randn(shape[0], rank, *ones, generator=random) * 0.05,
    }


def embedding_factors(module: str, shape: tuple[int, ...], rank: int, seed: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}{module}.lora_embedding_A": torch.randn(rank, shape[0], generator=random) * 0.05,
        f"{PREFIX}{module}.lora_embedding_B": torch.randn(shape[1], rank, generator=random) * 0.05,
    }


def write(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """An adapter of those tensors; `config` beside what all have."""
    folder.mkdir(parents=True)
    usual = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))
    save_file(dict(tensors), folder / "adapter_model.safetensors")
    return folder


def usual(folder: Path, shapes: Mapping[str, tuple[int, ...]], seed: int = 0, rank: int = 4, **config: Any) -> Path:
    """An adapter of TARGETS."""
    tensors = {}
    for at, module in enumerate(TARGETS):
        tensors |= factors(module, shapes[f"{module}.weight"], rank, 100 * seed + at)
    return write(folder, tensors, r=rank, **config)
