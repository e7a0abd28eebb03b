"""Small checkpoints to damage, made from a golden one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import GOLDEN, ROOT
from vlm_trt.bundle.errors import CheckpointError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.export import Choices, export

Tensors = dict[str, torch.Tensor]


def single(target: Path, change: Callable[[Tensors], object] = lambda tensors: None) -> Path:
    """A copy of the unsharded golden checkpoint, its tensors changed."""
    shutil.copytree(GOLDEN / "image-224" / "checkpoint", target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def demo(target: Path, change: Callable[[Tensors], object]) -> Path:
    """A copy of the demo model's checkpoint, its tensors changed."""
    shutil.copytree(ROOT / "examples" / "demo_model" / "checkpoint", target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def loud(target: Path) -> Path:
    """The demo model with a gated product of up to 170,000, beyond fp16; what comes out is the same."""

    def change(tensors: Tensors) -> None:
        for name, factor in (("w1", 3000.0), ("c_proj", 1 / 3000)):
            key = f"transformer.h.1.mlp.{name}.weight"
            tensors[key] = tensors[key].float() * factor

    return demo(target, change)


def coarse(target: Path) -> Path:
    """The demo model with 300 added to the keys of a vision layer: softmax takes it away, and fp16 the digits."""

    def change(tensors: Tensors) -> None:
        key = "transformer.visual.transformer.resblocks.1.attn.in_proj.bias"
        heads = tensors[key].float().reshape(4, 3, -1)  # heads, query–key–value, dim
        heads[:, 1] += 300
        tensors[key] = heads.reshape(-1)

    return demo(target, change)


def deaf(target: Path) -> Path:
    """The demo model with values of up to 300,000 in the cache."""

    def change(tensors: Tensors) -> None:
        for name, at, factor in (("c_attn.weight", 512, 1e5), ("c_attn.bias", 512, 1e5), ("c_proj.weight", 0, 1e-5)):
            key = f"transformer.h.1.attn.{name}"
            tensors[key] = tensors[key].float()
            tensors[key][at:] *= factor

    return demo(target, change)


def sharded(target: Path) -> Path:
    """A copy of the golden checkpoint in three shards."""
    shutil.copytree(GOLDEN / "ntk-256" / "checkpoint", target)
    return target


def pickled(target: Path) -> Path:
    """The golden checkpoint as two `pytorch_model-*.bin` shards with their index."""
    single(target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, target / file)
        weight_map |= dict.fromkeys(part, file)
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def resharded(target: Path) -> Path:
    """The checkpoint of `single` as two safetensors shards with their index."""
    single(target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in sorted(set(weight_map.values())):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        save_file(part, target / file, metadata={"format": "pt"})
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


def edit_json(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file; a value of None removes the key."""
    raw = json.loads(path.read_text())
    for key, value in changes.items():
        where, last = (raw["visual"], key[7:]) if key.startswith("visual_") else (raw, key)
        if value is None:
            where.pop(last, None)
        else:
            where[last] = value
    path.write_text(json.dumps(raw))


def refused(checkpoint: Path, sentence: str, kind: type[VlmTrtError] = CheckpointError) -> None:
    """The export is refused with that sentence, and nothing is left where the bundle would be."""
    target = checkpoint.parent / "bundle"
    with pytest.raises(kind, match=sentence):
        export(checkpoint, target, Choices(Precision.FP16, max_seq_tokens=512))
    assert [path.name for path in checkpoint.parent.iterdir() if path != checkpoint] == []
