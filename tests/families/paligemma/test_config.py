"""PaliGemma's configs as published, of the first and the second, and every refusal with its sentence."""

from pathlib import Path

import pytest

from tests.families.published.published_configs import (
    GOLDEN,
    PALIGEMMA2_3B,
    PALIGEMMA2_10B,
    PALIGEMMA2_28B,
    Config,
    changed,
    golden,
    paligemma,
    written,
)
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ChatFormat, Limits, ModelConfig
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.parts import Activation, LinearConnector, SandwichBlock, SerialBlock, SiglipTower
from vlm_trt.bundle.picture_rules import Squash
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import signature
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family_of
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.paligemma.answer import parse_answer
from vlm_trt.families.paligemma.config import read_config
from vlm_trt.families.paligemma.family import position_table, weight_map, write_places
from vlm_trt.families.weights import Layout


def read(folder: Path, name: str, changes: Config) -> ModelConfig:
    """A golden model's config with other keys."""
    return read_config(written(folder, name, changed(golden(name), changes), 32))


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_the_golden_checkpoints_are_explained(name: str) -> None:
    model = family_of(GOLDEN / name).read_config(GOLDEN / name)
    weights = weight_map(model)
    Checkpoint(GOLDEN / name, weights.renames).check(weights)
    assert model.decoder.tied_head and model.decoder.embedding_scale == 8.0
    norms = [weight for weight in weights.weights if weight.name.endswith("mlp_norm.weight")]
    assert [norm.layout for norm in norms] == 2 * [Layout.COPY] + 2 * [Layout.PLUS_ONE]
    assert all(norm.full_precision for norm in norms)


def test_the_second_one_in_miniature() -> None:
    block = read_config(GOLDEN / "paligemma2").decoder.block
    assert isinstance(block, SandwichBlock)
    assert (block.window, block.window_layers, block.score_cap) == (24, (0,), 5.0)
    assert block.attention_scale == 48**-0.5 and read_config(GOLDEN / "paligemma2").decoder.logit_cap == 15.0


@pytest.mark.parametrize(("side", "tokens"), [(224, 256), (448, 1024), (896, 4096)])
def test_published_sizes(tmp_path: Path, side: int, tokens: int) -> None:
    model = read_config(written(tmp_path, "paligemma", paligemma(side), side))
    decoder, block = model.decoder, model.decoder.block
    assert isinstance(block, SerialBlock) and block.activation is Activation.GELU_TANH
    assert (decoder.layers, decoder.hidden, block.heads, block.kv_heads, block.head_dim) == (18, 2048, 8, 1, 256)
    assert (block.mlp_width, block.norm_eps, block.attention_scale) == (16384, 1e-6, 1 / 16)
    assert (decoder.vocab_size, decoder.max_positions, decoder.trained_tokens) == (257216, 8192, tokens + 512)
    assert (decoder.rope_base, decoder.tied_head, decoder.embedding_scale) == (1e4, True, 2048**0.5)
    assert model.vision == SiglipTower(
        image_size=side, patch_size=14, width=1152, layers=27, heads=16, mlp_width=4304, norm_eps=1e-6,
        activation=Activation.GELU_TANH,
    )  # fmt: skip
    assert model.connector == LinearConnector(tokens=tokens, vision_width=1152, hidden=2048)
    assert model.pictures == Squash(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert model.generation.chat_format is ChatFormat.TASK and model.generation.stop_ids == (1,)


@pytest.mark.parametrize(
    ("config", "layers", "hidden", "heads", "mlp_width", "scalar"),
    [
        (PALIGEMMA2_3B, 26, 2304, (8, 4, 256), 9216, 256),
        (PALIGEMMA2_10B, 42, 3584, (16, 8, 256), 14336, 256),
        (PALIGEMMA2_28B, 46, 4608, (32, 16, 128), 36864, 144),
    ],
    ids=["3b", "10b", "28b"],
)
def test_published_sizes_of_the_second(
    tmp_path: Path, config: Config, layers: int, hidden: int, heads: tuple[int, int, int], mlp_width: int, scalar: int
) -> None:
    model = read_config(written(tmp_path, "paligemma", config, 224))
    decoder, block = model.decoder, model.decoder.block
    assert isinstance(block, SandwichBlock) and block.activation is Activation.GELU_TANH
    assert (decoder.layers, decoder.hidden, block.mlp_width) == (layers, hidden, mlp_width)
    assert (block.heads, block.kv_heads, block.head_dim) == heads
    assert block.attention_scale == pytest.approx(scalar**-0.5)
    assert (block.score_cap, block.window, decoder.logit_cap) == (50.0, 4096, 30.0)
    assert block.window_layers == tuple(range(0, layers, 2)) and decoder.tied_head
    assert model.connector.hidden == hidden and model.generation.stop_ids == (1,)


def test_sections_that_are_not_there_are_the_classes_own(tmp_path: Path) -> None:
    model = read_config(written(tmp_path, "paligemma", {"model_type": "paligemma"}, 224))
    assert (model.decoder.hidden, model.decoder.layers, model.decoder.kv_heads) == (2048, 18, 1)
    assert (model.vision.width, model.vision.layers, model.vision.mlp_width) == (1152, 27, 4096)


@pytest.mark.parametrize(
    ("name", "changes", "kind", "sentence"),
    [
        ("paligemma", {"text_config.model_type": "gemma3"}, UnsupportedError, "'gemma3'; supported: gemma, gemma2"),
        ("paligemma", {"text_config.use_bidirectional_attention": False}, UnsupportedError, "is False; only True"),
        ("paligemma", {"projection_dim": 32}, CheckpointError, "projection_dim is 32 but text_config.hidden_size"),
        ("paligemma", {"text_config.hidden_act": "silu"}, UnsupportedError, "say it with hidden_activation"),
        ("paligemma", {"text_config.attention_bias": True}, UnsupportedError, "attention_bias is True; only False"),
        ("paligemma", {"tie_word_embeddings": False}, CheckpointError, "False but text_config.tie_word_emb"),
        ("paligemma", {"text_config.sliding_window": 8}, UnsupportedError, "unknown key 'text_config.sliding_window'"),
        ("paligemma2", {"text_config.attn_logit_softcapping": None}, UnsupportedError, "attn_logit_softcapping is n"),
        ("paligemma2", {"text_config.sliding_window": None}, UnsupportedError, "text_config.sliding_window is null"),
        ("paligemma2", {"text_config.layer_types": ["full_attention"]}, CheckpointError, "has 1 values for 2 layers"),
        ("paligemma2", {"text_config.layer_types": ["full_attention", "mamba"]}, UnsupportedError, r"types\[1\] is 'm"),
        ("paligemma2", {"text_config.query_pre_attn_scalar": ...}, CheckpointError, "query_pre_attn_scalar is missing"),
        ("paligemma2", {"text_config.num_key_value_heads": ...}, CheckpointError, "num_key_value_heads is missing"),
        ("paligemma2", {"text_config.final_logit_softcapping": 0}, CheckpointError, "is 0, not a number from 0.01"),
    ],
)  # fmt: skip
def test_a_config_that_is_refused(
    tmp_path: Path, name: str, changes: Config, kind: type[VlmTrtError], sentence: str
) -> None:
    with pytest.raises(kind, match=f"config.json: .*{sentence}"):
        read(tmp_path, name, changes)


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_pytorch_tanh"])
def test_the_first_gemmas_activation_is_always_the_one_with_tanh(tmp_path: Path, hidden_act: str) -> None:
    model = read(tmp_path, "paligemma", {"text_config.hidden_act": hidden_act})
    assert model.decoder.block.activation is Activation.GELU_TANH


def test_an_activation_that_is_said_is_taken(tmp_path: Path) -> None:
    changes = {"text_config.hidden_act": "silu", "text_config.hidden_activation": "gelu"}
    assert read(tmp_path, "paligemma", changes).decoder.block.activation is Activation.GELU


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config.layer_types": ...},
        {"text_config.rope_parameters": ..., "text_config.rope_theta": ...},
        {"text_config.use_bidirectional_attention": None, "vision_config.vision_use_head": True},
    ],
)
def test_layouts_of_the_same_model(tmp_path: Path, changes: Config) -> None:
    assert read(tmp_path / "one", "paligemma2", changes) == read(tmp_path / "two", "paligemma2", {})


def test_logits_without_a_cap(tmp_path: Path) -> None:
    assert read(tmp_path, "paligemma2", {"text_config.final_logit_softcapping": None}).decoder.logit_cap is None


def test_positions_count_from_one_and_the_prompt_is_one_prefix() -> None:
    decoder = read_config(GOLDEN / "paligemma2").decoder
    table = position_table(decoder, PromptShape(30, prefix=30), 64)
    assert table.cos[0, 0] == pytest.approx(0.5403023) and table.rotation == 1.0  # cos 1
    assert (table.attend_until[:30] == 29).all() and (table.attend_from[:30] == 0).all()
    assert table.attend_until[40] == 40 and table.attend_from[40] == 40 - 24 + 1


def test_places_are_written_as_they_are_read() -> None:
    text = write_places("cat", [(0.25, 0.5, 0.75, 1.0), (0.0, 0.0, 0.5, 0.5)])
    assert text == "<loc0512><loc0256><loc1023><loc0768> cat ; <loc0000><loc0000><loc0512><loc0512> cat"
    found = parse_answer(text, [(1024, 1024)])
    assert [place.points for place in found.groundings] == [((256, 512), (768, 1023)), ((0, 0), (512, 512))]


def test_a_decoder_without_a_windowed_layer_has_no_window(tmp_path: Path) -> None:
    """Nor has its graph an input that no node would read."""
    model = read(tmp_path, "paligemma2", {"text_config.layer_types": ["full_attention", "full_attention"]})
    assert model.decoder.window is None
    contract = signature(Component.DECODER, model, Limits(256, 1, 1), Precision.FP32)
    assert "attend_from" not in {tensor.name for tensor in contract.inputs}
