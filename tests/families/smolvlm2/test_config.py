"""SmolVLM2's configs as published, and every refusal with its sentence."""

import json
from pathlib import Path

import pytest

from tests.families.made_tokenizers import smollm_like
from tests.families.published.published_configs import (
    GOLDEN,
    SMOLVLM2_2B,
    SMOLVLM2_256M,
    SMOLVLM2_500M,
    Config,
    changed,
    golden,
    written,
)
from vlm_trt.bundle.config import ChatFormat, ModelConfig, usual_limits
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.parts import Activation, PixelShuffleConnector, SiglipTower
from vlm_trt.bundle.picture_rules import FrameSampling, Split
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.family import family_of
from vlm_trt.families.smolvlm2.config import read_config
from vlm_trt.families.smolvlm2.family import load_tokenizer, weight_map

ONE_A_SECOND = FrameSampling(rate=1.0, least=1, most=64)


def read(folder: Path, changes: Config) -> ModelConfig:
    """The golden model's config with other keys."""
    return read_config(written(folder, "smolvlm2", changed(golden("smolvlm2"), changes), 32))


def test_the_golden_checkpoint_is_explained(tmp_path: Path) -> None:
    model = family_of(GOLDEN / "smolvlm2").read_config(GOLDEN / "smolvlm2")
    weights = weight_map(model)
    Checkpoint(GOLDEN / "smolvlm2", weights.renames).check(weights)
    assert isinstance(model.pictures, Split) and (model.pictures.long_side, model.pictures.cuts) == (64, True)
    tokenizer = load_tokenizer(smollm_like(tmp_path / "tokenizer.json"), model)
    assert tokenizer.stop_ids == {2, tokenizer.id_of("<end_of_utterance>")} and tokenizer.end_of_text == 2


@pytest.mark.parametrize(
    ("config", "side", "layers", "heads", "tower", "tokens"),
    [
        (SMOLVLM2_256M, 512, (30, 576, 1536), (9, 3), (12, 768, 3072, 12, 16), 64),
        (SMOLVLM2_500M, 512, (32, 960, 2560), (15, 5), (12, 768, 3072, 12, 16), 64),
        (SMOLVLM2_2B, 384, (24, 2048, 8192), (32, 32), (27, 1152, 4304, 16, 14), 81),
    ],
    ids=["256M", "500M", "2.2B"],
)
def test_published_sizes(
    tmp_path: Path,
    config: Config,
    side: int,
    layers: tuple[int, ...],
    heads: tuple[int, ...],
    tower: tuple[int, ...],
    tokens: int,
) -> None:
    model = read_config(written(tmp_path, "smolvlm2", config, side))
    decoder, block = model.decoder, model.decoder.block
    assert (decoder.layers, decoder.hidden, block.mlp_width) == layers
    assert (block.heads, block.kv_heads, block.head_dim) == (*heads, 64)
    assert (decoder.vocab_size, decoder.max_positions, decoder.tied_head) == (49280, 8192, False)
    depth, width, mlp_width, vision_heads, patch_size = tower
    assert model.vision == SiglipTower(
        image_size=side, patch_size=patch_size, width=width, layers=depth, heads=vision_heads, mlp_width=mlp_width,
        norm_eps=1e-6, activation=Activation.GELU_TANH,
    )  # fmt: skip
    joined = 3 if side == 384 else 4
    assert model.connector == PixelShuffleConnector(
        tokens=tokens, vision_width=width, hidden=decoder.hidden, side=joined
    )
    assert model.pictures == Split(
        mean=(0.5,) * 3, std=(0.5,) * 3, long_side=4 * side, cuts=True, frames=ONE_A_SECOND, frame_side=side
    )
    assert model.most_picture_tokens == 17 * tokens
    assert usual_limits(model).max_seq_tokens == 2 * 17 * tokens + 1024
    assert model.generation.chat_format is ChatFormat.UTTERANCES and not model.generation.do_sample


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"scale_factor": 3}, CheckpointError, "scale_factor is 3, and the tower's grid of 8 patches is no multiple"),
        ({"text_config.qk_layer_norms": True}, UnsupportedError, "text_config.qk_layer_norms is True; only False"),
        ({"text_config.use_resampler": True}, UnsupportedError, "text_config.use_resampler is True; only False"),
        ({"text_config.model_type": "qwen2"}, UnsupportedError, "text_config.model_type is 'qwen2'; supported: llama"),
        ({"vision_config.model_type": "vit"}, UnsupportedError, "is 'vit'; supported: smolvlm_vision"),
        ({"vision_config.image_size": 64}, CheckpointError, "max_image_size is 32, and vision_config.image_size in"),
        ({"tie_word_embeddings": True}, CheckpointError, "tie_word_embeddings is True but text_config"),
        ({"sparkle": 1}, UnsupportedError, "unknown key 'sparkle'"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, changes: Config, error: type[VlmTrtError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        read(tmp_path, changes)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"resample": 3}, UnsupportedError, "resample is 3; only 1 is supported"),
        ({"do_rescale": False}, UnsupportedError, "do_rescale is False; only True is supported"),
        ({"size": {"longest_edge": 4097}}, UnsupportedError, "size is 4097; at most 4096 pixels are supported"),
        ({"size": {"height": 64, "width": 64}}, UnsupportedError, "size.height is 64; only None is supported"),
        ({"image_processor_type": "CLIPImageProcessor"}, UnsupportedError, "supported: SmolVLMImageProcessor"),
        ({"shimmer": 1}, UnsupportedError, "unknown key 'shimmer'"),
    ],
)  # fmt: skip
def test_processors_that_are_refused(tmp_path: Path, changes: Config, error: type[VlmTrtError], sentence: str) -> None:
    folder = written(tmp_path, "smolvlm2", golden("smolvlm2"), 32)
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(error, match=sentence):
        read_config(folder)
