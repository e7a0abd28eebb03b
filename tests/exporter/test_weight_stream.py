"""Streamed weights are, byte for byte, what the layouts say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from bundle.digests import sha256_of
from bundle.signature import Component, Precision
from exporter import layouts
from exporter.checkpoint import Checkpoint
from exporter.modules.build import build_module
from exporter.weight_stream import load_weights, plan_weights, stream_weights
from models.qwen_vl.config import read_config
from models.qwen_vl.weights import weight_map
from tests.conftest import GOLDEN

FOLDER = GOLDEN / "ntk-256" / "checkpoint"
MODEL = read_config(FOLDER)
WEIGHTS = {c: tuple(w for w in weight_map(MODEL).weights if w.component is c) for c in Component}


@pytest.mark.parametrize("component", list(Component))
@pytest.mark.parametrize("precision", list(Precision))
def test_the_map_is_the_module(component: Component, precision: Precision) -> None:
    """Names, shapes and which stay fp32: the weight map and the torch module agree."""
    with torch.device("meta"):
        module = build_module(component, MODEL, precision)
    found = {name: (tuple(p.shape), p.dtype == torch.float32) for name, p in module.named_parameters()}
    wide = precision is Precision.FP32
    assert found == {w.name: (w.shape, wide or w.full_precision) for w in WEIGHTS[component]}


@pytest.mark.parametrize("component", list(Component))
@pytest.mark.parametrize("precision", list(Precision))
def test_the_file_holds_the_values(
    tmp_path: Path, component: Component, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layouts, "BLOCK_BYTES", 5000)  # many blocks, none of them even
    checkpoint, path, told = Checkpoint(FOLDER), tmp_path / "weights", 0

    def count(n: int) -> None:
        nonlocal told
        told += n

    digest = stream_weights(WEIGHTS[component], MODEL, checkpoint, precision, path, count)
    places, size = plan_weights(WEIGHTS[component], precision)
    assert path.stat().st_size == size
    assert digest == sha256_of(path)
    assert told == sum(place.length for place in places)
    data = path.read_bytes()
    expected = load_weights(WEIGHTS[component], MODEL, checkpoint)
    for place in places:
        assert place.offset % (4096 if place.length >= 1 << 16 else 64) == 0
        dtype = getattr(torch, place.dtype)
        words = torch.frombuffer(bytearray(data[place.offset : place.offset + place.length]), dtype=dtype)
        assert torch.equal(words.reshape(place.shape), expected[place.name].to(dtype)), place.name


def test_vision_heads_are_unpacked_in_order() -> None:
    """Row r of head h of part p comes from row (h·3 + p)·head_dim + r."""
    checkpoint, vision = Checkpoint(FOLDER), MODEL.vision
    packed = checkpoint.read("transformer.visual.transformer.resblocks.0.attn.in_proj.weight").float()
    ours = load_weights(WEIGHTS[Component.VISION_ENCODER], MODEL, checkpoint)["layers.0.attention.qkv.weight"]
    rng = np.random.default_rng(0)
    for _ in range(50):
        part, head, row = (int(rng.integers(n)) for n in (3, vision.heads, vision.head_dim))
        column = (part * vision.heads + head) * vision.head_dim + row
        assert torch.equal(ours[:, column], packed[(head * 3 + part) * vision.head_dim + row])


def test_a_failing_disk_surfaces(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        stream_weights(
            WEIGHTS[Component.RESAMPLER], MODEL, Checkpoint(FOLDER), Precision.FP16, tmp_path / "no" / "weights"
        )
