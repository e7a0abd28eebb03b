"""LLaVA-1.5's configs as published, and every refusal with its sentence."""

from pathlib import Path

import pytest

from tests.families.published.published_configs import (
    GOLDEN,
    LLAVA_7B,
    LLAVA_13B,
    Config,
    changed,
    golden,
    written,
)
from vlm_trt.bundle.config import ChatFormat, ModelConfig
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.parts import Activation, ClipTower, MlpConnector, SerialBlock
from vlm_trt.bundle.picture_rules import CentreCrop
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family_of
from vlm_trt.families.llava15.config import read_config
from vlm_trt.families.llava15.family import weight_map


def read(folder: Path, changes: Config) -> ModelConfig:
    """The golden model's config with other keys."""
    return read_config(written(folder, "llava15", changed(golden("llava15"), changes), 32))


def test_the_golden_checkpoint_is_explained() -> None:
    model = family_of(GOLDEN / "llava15").read_config(GOLDEN / "llava15")
    weights = weight_map(model)
    Checkpoint(GOLDEN / "llava15", weights.renames).check(weights)
    assert isinstance(model.vision, ClipTower) and model.vision.layers == 2  # of 3
    assert model.generation.stop_ids == (2,) and model.generation.max_new_tokens == 16
    assert "lm_head.weight" in [weight.name for weight in weights.weights]


@pytest.mark.parametrize(
    ("config", "layers", "hidden", "heads", "mlp_width"),
    [(LLAVA_7B, 32, 4096, 32, 11008), (LLAVA_13B, 40, 5120, 40, 13824)],
    ids=["7b", "13b"],
)
def test_published_sizes(tmp_path: Path, config: Config, layers: int, hidden: int, heads: int, mlp_width: int) -> None:
    model = read_config(written(tmp_path, "llava15", config, 336))
    decoder, block = model.decoder, model.decoder.block
    assert isinstance(block, SerialBlock) and not block.qkv_bias and block.activation is Activation.SILU
    assert (decoder.layers, decoder.hidden, block.heads, block.kv_heads) == (layers, hidden, heads, heads)
    assert (block.head_dim, block.mlp_width, block.norm_eps) == (128, mlp_width, 1e-5)
    assert (decoder.vocab_size, decoder.max_positions, decoder.trained_tokens) == (32064, 4096, 4096)
    assert (decoder.rope_base, decoder.tied_head, decoder.logit_cap) == (1e4, False, None)
    assert model.vision == ClipTower(
        image_size=336, patch_size=14, width=1024, layers=23, heads=16, mlp_width=4096, norm_eps=1e-5,
        activation=Activation.QUICK_GELU,
    )  # fmt: skip
    assert model.connector == MlpConnector(
        tokens=576, vision_width=1024, hidden=hidden, activation=Activation.GELU, bias=True
    )
    assert isinstance(model.pictures, CentreCrop) and model.pictures.short_side == 336
    assert model.generation.chat_format is ChatFormat.LLAVA and model.generation.stop_ids == (2,)
    assert not model.generation.do_sample and model.generation.max_new_tokens == 512


@pytest.mark.parametrize(("named", "computed"), [(-1, 3), (-2, 2), (-3, 1), (1, 1), (3, 3)])
def test_layers_up_to_the_one_that_is_taken(tmp_path: Path, named: int, computed: int) -> None:
    model = read(tmp_path, {"vision_feature_layer": named})
    assert isinstance(model.vision, ClipTower) and model.vision.layers == computed


def test_sections_that_are_not_there_are_the_classes_own(tmp_path: Path) -> None:
    bare = {"model_type": "llava", "image_token_index": 32000}
    model = read_config(written(tmp_path, "llava15", bare, 336))
    assert (model.vision.width, model.vision.image_size, model.decoder.hidden) == (1024, 336, 4096)
    assert model.decoder.max_positions == 2048 and model.decoder.block.norm_eps == 1e-6


@pytest.mark.parametrize(
    ("changes", "kind", "sentence"),
    [
        ({"mm_vision_tower": "openai/clip"}, UnsupportedError, "original repository, .* use the llava-hf/llava-1.5-7b"),
        ({"model_type": "llava_llama"}, UnsupportedError, "original repository, .* convert_llava_weights_to_hf.py"),
        ({"text_config.model_type": "mistral"}, UnsupportedError, "model_type is 'mistral'; supported: llama"),
        ({"vision_config.model_type": "siglip_vision_model"}, UnsupportedError, "supported: clip_vision_model"),
        ({"vision_feature_select_strategy": "full"}, UnsupportedError, "strategy is 'full'; only 'default' is"),
        ({"vision_feature_layer": [-2, -5]}, UnsupportedError, "vision_feature_layer is a list; only models"),
        ({"vision_feature_layer": 0}, UnsupportedError, "vision_feature_layer is 0, which takes no layer"),
        ({"vision_feature_layer": -5}, CheckpointError, "vision_feature_layer is -5, and the tower has 3 layers; use"),
        ({"vision_feature_layer": 4}, CheckpointError, "vision_feature_layer is 4, and the tower has 3 layers"),
        ({"projector_hidden_act": "relu"}, UnsupportedError, "projector_hidden_act is 'relu'; supported: silu, "),
        ({"text_config.attention_bias": True}, UnsupportedError, "text_config.attention_bias is True; only False"),
        ({"text_config.mlp_bias": True}, UnsupportedError, "text_config.mlp_bias is True; only False is supported"),
        ({"text_config.hidden_act": "relu2"}, UnsupportedError, "text_config.hidden_act is 'relu2'; supported"),
        ({"text_config.tie_word_embeddings": True}, CheckpointError, "tie_word_embeddings is False but text_config"),
        ({"text_config.rope_parameters": {"rope_type": "llama3"}}, UnsupportedError, "parameters.rope_type is 'lla"),
        ({"text_config.rope_scaling": {"type": "linear"}}, UnsupportedError, "rope_scaling.type is 'linear'; only"),
        ({"text_config.rope_theta": 5e5}, CheckpointError, "rope_theta is 500000 in one place and 10000 in another"),
        ({"text_config.partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor is 0.5; only 1.0"),
        ({"text_config.num_key_value_heads": 3}, CheckpointError, "is 4, not divisible by num_key_value_heads 3"),
        ({"text_config.head_dim": 15}, CheckpointError, "head_dim is 15; rotary embedding needs an even"),
        ({"text_config.head_dim": None, "text_config.hidden_size": 66}, CheckpointError, "66, not divisible by num"),
        ({"text_config.hidden_size": None}, CheckpointError, "text_config.hidden_size is missing"),
        ({"text_config.vocab_size": "320"}, CheckpointError, "text_config.vocab_size is '320', not a whole number"),
        ({"text_config": 3}, CheckpointError, "text_config is 3, not an object"),
        ({"text_config.qk_norm": True, "depth": 2}, UnsupportedError, "unknown key 'depth' and 1 more; it may change"),
        ({"text_config.quantization_config": {"bits": 4}}, UnsupportedError, "quantization_config is {'bits': 4}"),
        ({"text_config.pruned_heads": {"0": [1]}}, UnsupportedError, "text_config.pruned_heads is .*; only {} is"),
        ({"vision_config.num_channels": 1}, UnsupportedError, "vision_config.num_channels is 1; only 3 is supported"),
        ({"vision_config.image_size": 4}, CheckpointError, "image_size is 4, less than patch_size 8"),
        ({"vision_config.num_attention_heads": 5}, CheckpointError, "hidden_size is 32, not divisible by num_att"),
        ({"vision_config.use_rope": True}, UnsupportedError, "unknown key 'vision_config.use_rope'; it may"),
        ({"image_token_id": 7}, CheckpointError, "image_token_id is 7 but image_token_index is 5; use the file"),
    ],
)  # fmt: skip
def test_a_config_that_is_refused(tmp_path: Path, changes: Config, kind: type[VlmTrtError], sentence: str) -> None:
    with pytest.raises(kind, match=f"config.json.*{sentence}"):
        read(tmp_path, changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config.rope_parameters": ..., "text_config.rope_theta": ...},
        {"text_config.rope_parameters": None, "text_config.rope_scaling": None},
        {"text_config.rope_parameters": {"rope_theta": 10000.0, "type": "default"}},
        {"text_config.head_dim": ..., "text_config.num_key_value_heads": None},
        {"tie_word_embeddings": ..., "text_config.tie_word_embeddings": ...},
        {"image_token_index": ..., "image_token_id": 5},
        {"text_config.do_sample": False, "text_config.id2label": {"0": "a"}, "text_config._commit_hash": "1"},
        {"vision_config.return_dict": True, "vision_config.is_encoder_decoder": False, "vision_config.top_k": 50},
    ],
)
def test_layouts_of_the_same_model(tmp_path: Path, changes: Config) -> None:
    assert read(tmp_path / "one", changes) == read(tmp_path / "two", {})


def test_a_tied_decoder_has_no_head_of_its_own(tmp_path: Path) -> None:
    model = read(tmp_path, {"tie_word_embeddings": True, "text_config.tie_word_embeddings": True})
    weights = weight_map(model)
    assert model.decoder.tied_head and "lm_head.weight" not in [weight.name for weight in weights.weights]
    Checkpoint(GOLDEN / "llava15", weights.renames).check(weights)  # which stores one
