"""Checkpoints in 4 bits, made of golden ones by the formulas of GPTQ and AWQ and packed as they are published.

All in numpy, one integer after the other, so that it shares nothing with what reads them. The Hessian of GPTQ's search
is left out: which integers are chosen is not what a layout is about.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

Array = NDArray[Any]
# How many outputs of each eight stand before an output in a word of AWQ. Source: AutoAWQ 0.2.9, `gemm.py`.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Layout:
    """How the matrices of a checkpoint are quantized and stored."""

    method: str = "gptq"
    group: int = 32  # −1: all inputs
    symmetric: bool = True
    second: bool = False  # gptq_v2
    order: bool = False  # activation order, each matrix its own, but those of one input the same
    own_orders: bool = False  # all of them different
    lone_config: bool = False  # said in quantize_config.json alone
    biases: bool = False  # AutoGPTQ's, of zeros
    bf16: bool = False  # scales, in place of fp16

    @property
    def config(self) -> dict[str, Any]:
        if self.method == "awq":
            return {
                "quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm", "zero_point": True,
                "modules_to_not_convert": ["visual"],
            }  # fmt: skip
        return {
            "quant_method": "gptq", "bits": 4, "group_size": self.group, "desc_act": self.order, "sym": self.symmetric,
            "damp_percent": 0.01, "static_groups": False, "true_sequential": True, "model_name_or_path": None,
            "model_file_base_name": "model", **({"checkpoint_format": "gptq_v2"} if self.second else {}),
        }  # fmt: skip


@dataclass(frozen=True)
class Quantized:
    """One matrix, and the tensors that it is stored as."""

    floats: NDArray[np.float64]  # [outputs, inputs], what the stored numbers mean
    stored: Mapping[str, torch.Tensor]  # by the end of their names


def quantize(weight: Array, layout: Layout, seed: int) -> Quantized:
    """A matrix [outputs, inputs] in 4 bits."""
    outputs, inputs = weight.shape
    group = inputs if layout.group == -1 else layout.group
    rng = np.random.default_rng(seed)
    places = rng.permutation(inputs) if layout.order else np.arange(inputs)
    group_of = np.empty(inputs, np.int64)
    group_of[places] = np.arange(inputs) // group
    scales = np.empty((inputs // group, outputs))
    zeros, integers = np.empty(scales.shape, np.int64), np.empty((inputs, outputs), np.int64)
    for number in range(len(scales)):
        own = weight[:, group_of == number].T.astype(np.float64)  # [group, outputs]
        scales[number], zeros[number] = _range(own, layout)
        rounded = np.rint(own / scales[number]) + zeros[number]
        integers[group_of == number] = np.clip(rounded, 0, 15)
    floats = (integers - zeros[group_of]) * scales[group_of]
    stored = {
        "scales": torch.from_numpy(scales).to(torch.bfloat16 if layout.bf16 else torch.float16),
        "qweight": _words(integers, layout, along=0 if layout.method == "gptq" else 1),
        "qzeros": _words(zeros - (layout.method == "gptq" and not layout.second), layout, along=1),
    }
    if layout.method == "gptq":
        stored["g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    return Quantized(floats.T, stored)


def _range(own: Array, layout: Layout) -> tuple[Array, Array]:
    """Scale and zero point of each output of a group.

    Source: AutoGPTQ 0.7.1 `quantizer.py`, AutoAWQ 0.2.9 `quantizer.py`.
    """
    low, high = own.min(axis=0), own.max(axis=0)
    if layout.method == "gptq":
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        if layout.symmetric:
            high = np.maximum(-low, high)
            low = -high
    dtype = torch.bfloat16 if layout.bf16 else torch.float16
    scales = torch.from_numpy(np.maximum(high - low, 1e-5) / 15).to(dtype).double().numpy()
    if layout.method == "gptq" and layout.symmetric:
        return scales, np.full(scales.shape, 8)
    least = 1 if layout.method == "gptq" and not layout.second else 0  # GPTQ's first format has no way to store 0
    return scales, np.clip(-np.rint(low / scales), least, 15)


def _words(values: Array, layout: Layout, along: int) -> torch.Tensor:
    """Eight integers of 4 bits to a word of 32, the first in the lowest bits."""
    lines = values if along == 0 else values.T
    words = np.zeros((len(lines) // 8, lines.shape[1]), np.uint32)
    for word in range(len(words)):
        for at in range(8):
            taken = AWQ_ORDER[at] if layout.method == "awq" else at
            words[word] |= lines[8 * word + taken].astype(np.uint32) << np.uint32(4 * at)
    return torch.from_numpy(np.ascontiguousarray(words if along == 0 else words.T).view(np.int32))


def in_4_bits(
    source: Path,
    target: Path,
    layout: Layout,
    quantized: Callable[[str], bool],
    change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object] = lambda config, tensors: None,
) -> dict[str, NDArray[np.float64]]:
    """Writes a checkpoint whose matrices of those names have 4 bits; what they mean, by name.

    Args:
        source: a checkpoint of one safetensors file, in floats.
        target: a new folder.
        layout: of the matrices.
        quantized: whether a tensor is one of them.
        change: told the config and the tensors before they are written.
    """
    shutil.copytree(source, target)
    tensors: dict[str, torch.Tensor] = load_file(target / "model.safetensors")
    meant = {}
    for number, name in enumerate(sorted(filter(quantized, tensors))):
        base = name.removesuffix(".weight")
        # Matrices of one input are reordered alike, as their inputs are the same when the order is chosen.
        seed = number if layout.own_orders else tensors[name].shape[1] + len(base.rsplit(".", 1)[0])
        found = quantize(tensors.pop(name).float().numpy(), layout, seed)
        meant[name] = found.floats
        tensors |= {f"{base}.{end}": value for end, value in found.stored.items()}
        if layout.biases and f"{base}.bias" not in tensors:
            tensors[f"{base}.bias"] = torch.zeros(found.floats.shape[0], dtype=torch.float16)
    config = json.loads((target / "config.json").read_text())
    if layout.lone_config:
        (target / "quantize_config.json").write_text(
            json.dumps({key: value for key, value in layout.config.items() if key != "quant_method"})
        )
    else:
        config["quantization_config"] = layout.config
    change(config, tensors)
    (target / "config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, target / "model.safetensors")
    return meant


def of_qwen_vl(name: str) -> bool:
    """The matrices of Qwen-VL's decoder layers."""
    return name.startswith("transformer.h.") and name.endswith((
        "attn.c_attn.weight", "attn.c_proj.weight", "mlp.w1.weight", "mlp.w2.weight", "mlp.c_proj.weight",
    ))  # fmt: skip


def of_others(name: str) -> bool:
    """Those of a decoder that transformers publishes."""
    return ".layers." in name and "vision" not in name and "visual" not in name and name.endswith("_proj.weight")
