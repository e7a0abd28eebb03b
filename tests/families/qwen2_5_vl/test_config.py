"""Qwen2.5-VL's configs as published and in later layouts, and its own refusals."""

import json
from pathlib import Path

import pytest

from tests.families.made_tokenizers import qwen2_like
from tests.families.published.published_configs import (
    GOLDEN,
    QWEN2_5_VL_3B,
    QWEN2_5_VL_7B,
    Config,
    changed,
    golden,
    written,
)
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.parts import Activation, MergerConnector, NormKind, WindowTower
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.published.qwen2 import qwen2_weights
from vlm_trt.families.qwen2_5_vl.config import read_config
from vlm_trt.families.qwen2_5_vl.family import check_checkpoint, load_tokenizer

FOLDER = GOLDEN / "qwen2_5_vl"
FLAT: Config = json.loads((FOLDER / "config.hub_style.json").read_text())


def read(folder: Path, changes: Config, config: Config | None = None) -> ModelConfig:
    """The golden model's config, nested unless another is given, with other keys."""
    generation = json.loads((FOLDER / "generation_config.json").read_text())
    return read_config(written(folder, "qwen2_5_vl", changed(config or golden("qwen2_5_vl"), changes), 4, generation))


def test_the_golden_checkpoint_is_explained(tmp_path: Path) -> None:
    model = read_config(FOLDER)
    weights = qwen2_weights(model)
    Checkpoint(FOLDER, weights.renames).check(weights)
    assert isinstance(model.vision, WindowTower)
    assert (model.vision.window, model.vision.full_layers, model.vision.mlp_width) == (4, (1,), 48)
    assert read(tmp_path, {}, FLAT) == model


@pytest.mark.parametrize(
    ("config", "layers", "heads", "tied"),
    [(QWEN2_5_VL_3B, (36, 2048, 11008), (16, 2), True), (QWEN2_5_VL_7B, (28, 3584, 18944), (28, 4), False)],
    ids=["3B", "7B"],
)
def test_published_sizes(
    tmp_path: Path, config: Config, layers: tuple[int, ...], heads: tuple[int, int], tied: bool
) -> None:
    model = read_config(written(tmp_path, "qwen2_5_vl", config, 14))
    decoder = model.decoder
    assert (decoder.layers, decoder.hidden, decoder.mlp_width) == layers
    assert (decoder.heads, decoder.kv_heads, decoder.head_dim, decoder.tied_head) == (*heads, 128, tied)
    assert (decoder.trained_tokens, decoder.max_positions) == (32768, 128000)
    assert model.vision == WindowTower(
        patch_size=14, frames_per_patch=2, token_side=2, width=1280, layers=32, heads=16, mlp_width=3420,
        norm_eps=1e-6, activation=Activation.SILU, rope_base=10_000.0, window=8, full_layers=(7, 15, 23, 31),
    )  # fmt: skip
    assert model.connector == MergerConnector(
        vision_width=1280, hidden=decoder.hidden, token_side=2, norm=NormKind.RMS, norm_eps=1e-6
    )


def test_a_temperature_next_to_nothing_is_greedy(tmp_path: Path) -> None:
    """As published for 7B."""
    asked = {
        "bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643],
        "repetition_penalty": 1.05, "temperature": 0.000001, "transformers_version": "4.37.0",
    }  # fmt: skip
    found = read_config(written(tmp_path, "qwen2_5_vl", QWEN2_5_VL_7B, 14, asked)).generation
    assert (found.do_sample, found.temperature, found.repetition_penalty) == (False, 1.0, 1.05)
    assert found.stop_ids == (151645, 151643)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"vision_config.window_size": 20}, UnsupportedError, "window_size is 20; only multiples of a token's 8"),
        ({"vision_config.fullatt_block_indexes": [1, 3]}, CheckpointError, "has 3, and the tower's layers are 0 to 2"),
        ({"vision_config.out_hidden_size": 32}, CheckpointError, "out_hidden_size is 32 but the decoder's"),
        ({"vision_config.model_type": "vit"}, UnsupportedError, "is 'vit'; supported: qwen2_5_vl_vision"),
        ({"vision_config.hidden_act": "tanh"}, UnsupportedError, "hidden_act is 'tanh'; supported: silu"),
        ({"sparkle": 1}, UnsupportedError, "unknown key 'sparkle'"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: Config, error: type[VlmTrtError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        read(tmp_path, changes)


def test_tokens_that_are_shown_and_that_no_text_becomes(tmp_path: Path) -> None:
    model = read_config(written(tmp_path, "qwen2_5_vl", golden("qwen2_5_vl"), 4))
    tokenizer = load_tokenizer(qwen2_like(tmp_path / "tokenizer.json", tools=True), model)
    check_checkpoint(tmp_path, model)
    call = tokenizer.id_of("<tool_call>")
    assert tokenizer.visible_bytes(call) == b"<tool_call>"
    ids = tokenizer.encode("<tool_call>")
    assert call not in ids and b"".join(map(tokenizer.visible_bytes, ids)) == b"<tool_call>"
    assert tokenizer.visible_bytes(tokenizer.id_of("<|box_start|>")) == b""
