"""Qwen2-VL's configs as published and in later layouts, and every refusal with its sentence."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.families.made_tokenizers import qwen2_like
from tests.families.published.published_configs import (
    GOLDEN,
    QWEN2_PROCESSOR,
    QWEN2_VL_2B,
    QWEN2_VL_7B,
    Config,
    changed,
    golden,
    written,
)
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ChatFormat, ModelConfig, require_limits, usual_limits, within
from vlm_trt.bundle.errors import BundleError, CheckpointError, UnsupportedError, UsageError, VlmTrtError
from vlm_trt.bundle.parts import Activation, FrameTower, MergerConnector, NormKind, SerialBlock
from vlm_trt.bundle.picture_rules import AnySize, FrameSampling
from vlm_trt.bundle.precision import Precision
from vlm_trt.engines.profiles import profiles
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.families.published.qwen2 import qwen2_weights
from vlm_trt.families.qwen2_vl.config import read_config
from vlm_trt.families.qwen2_vl.family import check_checkpoint, load_tokenizer

CLIP: Config = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
VIDEOS: Config = {"frames": FrameSampling(rate=2.0, least=4, most=768), "positions_per_second": None}
GOLDEN_FOLDER = GOLDEN / "qwen2_vl"
FLAT: Config = json.loads((GOLDEN_FOLDER / "config.hub_style.json").read_text())


def read(folder: Path, changes: Config, config: Config | None = None) -> ModelConfig:
    """The golden model's config, nested unless another is given, with other keys."""
    generation = json.loads((GOLDEN_FOLDER / "generation_config.json").read_text())
    return read_config(written(folder, "qwen2_vl", changed(config or golden("qwen2_vl"), changes), 4, generation))


def with_processor(folder: Path, processor: Config) -> ModelConfig:
    written(folder, "qwen2_vl", golden("qwen2_vl"), 4)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return read_config(folder)


def test_the_golden_checkpoint_is_explained() -> None:
    model = read_config(GOLDEN_FOLDER)
    weights = qwen2_weights(model)
    Checkpoint(GOLDEN_FOLDER, weights.renames).check(weights)
    decoder = model.decoder
    assert (decoder.rope_sections, decoder.rope_base, decoder.rotary_dim) == ((2, 3, 3), 1e6, 16)
    assert isinstance(decoder.block, SerialBlock) and decoder.block.qkv_bias
    assert model.pictures == AnySize(min_pixels=64, max_pixels=2048, **CLIP, **VIDEOS)
    assert model.generation.stop_ids == (2,) and model.generation.chat_format is ChatFormat.CHATML
    (patches,) = [weight for weight in weights.weights if weight.name == "patch_embedding.weight"]
    assert patches.shape == (96, 32) and patches.layout == "flatten"


def test_the_flat_layout_says_the_same(tmp_path: Path) -> None:
    assert read(tmp_path, {}, FLAT) == read_config(GOLDEN_FOLDER)


def test_copies_of_the_decoders_keys(tmp_path: Path) -> None:
    """As transformers 4.52 to 4.56 saves: both layouts in one file."""
    nested = golden("qwen2_vl")
    text = {**nested["text_config"], "image_token_id": None, "video_token_id": 6, "vision_token_id": 9}
    copies = {key: value for key, value in nested["text_config"].items() if key in FLAT}
    both = {**copies, **nested, "text_config": text}
    assert read(tmp_path, {}, both) == read_config(GOLDEN_FOLDER)
    with pytest.raises(UnsupportedError, match="hidden_size is 65; only 64 is supported"):
        read(tmp_path, {"hidden_size": 65}, both)


def test_keys_of_later_layouts(tmp_path: Path) -> None:
    model = read_config(GOLDEN_FOLDER)
    weights = qwen2_weights(model)
    stored = load_file(GOLDEN_FOLDER / "model.safetensors")
    later = {
        key.replace("visual.", "model.visual.") if key.startswith("visual.")
        else key.replace("model.", "model.language_model.") if key.startswith("model.") else key: value
        for key, value in stored.items()
    }  # fmt: skip
    save_file(later, tmp_path / "model.safetensors")
    Checkpoint(tmp_path, weights.renames).check(weights)


@pytest.mark.parametrize(
    ("config", "hidden", "heads", "vocab_size", "mlp_width", "tied"),
    [(QWEN2_VL_2B, 1536, (12, 2), 151936, 8960, True), (QWEN2_VL_7B, 3584, (28, 4), 152064, 18944, False)],
    ids=["2B", "7B"],
)
def test_published_sizes(
    tmp_path: Path, config: Config, hidden: int, heads: tuple[int, int], vocab_size: int, mlp_width: int, tied: bool
) -> None:
    model = read_config(written(tmp_path, "qwen2_vl", config, 14))
    decoder = model.decoder
    assert (decoder.hidden, decoder.heads, decoder.kv_heads, decoder.head_dim) == (hidden, *heads, 128)
    assert (decoder.layers, decoder.mlp_width, decoder.vocab_size) == (28, mlp_width, vocab_size)
    assert (decoder.tied_head, decoder.rope_sections, decoder.rope_base) == (tied, (16, 24, 24), 1e6)
    assert (decoder.trained_tokens, decoder.max_positions) == (32768, 32768)
    assert model.vision == FrameTower(
        patch_size=14, frames_per_patch=2, token_side=2, width=1280, layers=32, heads=16, mlp_width=5120,
        norm_eps=1e-6, activation=Activation.QUICK_GELU, rope_base=10_000.0,
    )  # fmt: skip
    assert model.connector == MergerConnector(
        vision_width=1280, hidden=hidden, token_side=2, norm=NormKind.LAYER, norm_eps=1e-6
    )
    assert model.pictures == AnySize(min_pixels=3136, max_pixels=12845056, **CLIP, **VIDEOS)
    assert model.generation.stop_ids == (151645,)
    head = [weight for weight in qwen2_weights(model).weights if weight.name == "lm_head.weight"]
    assert len(head) == (not tied)


def test_a_tied_head_is_said_in_either_place(tmp_path: Path) -> None:
    for key in ("tie_word_embeddings", "text_config.tie_word_embeddings"):
        other = "text_config.tie_word_embeddings" if key == "tie_word_embeddings" else "tie_word_embeddings"
        assert read(tmp_path, {key: True, other: ...}).decoder.tied_head


def test_how_the_published_checkpoints_are_sampled(tmp_path: Path) -> None:
    asked = {
        "bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
        "repetition_penalty": 1.0, "temperature": 0.01, "top_k": 1, "top_p": 0.001, "transformers_version": "4.37.0",
    }  # fmt: skip
    found = read_config(written(tmp_path, "qwen2_vl", QWEN2_VL_2B, 14, asked)).generation
    assert (found.stop_ids, found.do_sample, found.temperature, found.top_k) == ((151645, 151643), True, 0.01, 1)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"text_config.use_sliding_window": True}, UnsupportedError, "use_sliding_window is True; only False"),
        ({"text_config.layer_types": ["full_attention", "sliding_attention"]}, UnsupportedError, "layer_types is"),
        ({"text_config.model_type": "qwen3"}, UnsupportedError, "is 'qwen3'; supported: qwen2_vl_text"),
        ({"text_config.rope_scaling.type": "yarn"}, UnsupportedError,
         "text_config.rope_scaling.type is 'yarn'; supported: default, mrope"),
        ({"text_config.rope_scaling.mrope_section": [3, 3, 2]}, CheckpointError, "mrope_section says two different"),
        ({"text_config.rope_scaling": ..., "text_config.rope_parameters.mrope_section": ...}, CheckpointError,
         "text_config.rope_scaling.mrope_section is missing"),
        ({"text_config.rope_scaling": ..., "text_config.rope_parameters.mrope_section": [2, 3, 4]}, CheckpointError,
         r"mrope_section is \[2, 3, 4\], not three numbers with the sum 8, half of a head"),
        ({"text_config.rope_theta": 10.0}, CheckpointError, "rope_theta is 10 in one place and 1e\\+06 in another"),
        ({"text_config.attention_bias": True}, UnsupportedError, "attention_bias is True; only False"),
        ({"text_config.tie_word_embeddings": True}, CheckpointError, "tie_word_embeddings is False but text_config"),
        ({"vision_config.model_type": "vit"}, UnsupportedError, "is 'vit'; supported: qwen2_vl_vision"),
        ({"vision_config.hidden_size": 65}, CheckpointError, "hidden_size is 65 but the decoder's hidden_size is 64"),
        ({"vision_config.in_channels": 1}, UnsupportedError, "in_channels is 1; only 3 is supported"),
        ({"vision_config.num_heads": 3}, CheckpointError, "num_heads is 3; a head is a share of the width 32"),
        ({"vision_config.mlp_ratio": 0.01}, CheckpointError, "mlp_ratio makes an MLP of 0, not from 1 to"),
        ({"vision_config.rope_parameters.rope_type": "yarn"}, UnsupportedError, "is 'yarn'; only 'axial'"),
        ({"vision_config.patch_size": 8}, CheckpointError, "patch_size is 4, and the tower's in config.json is 8"),
        ({"vision_config.glitter": 1}, UnsupportedError, "unknown key 'vision_config.glitter'"),
        ({"text_config.glitter": 1}, UnsupportedError, "unknown key 'text_config.glitter'"),
        ({"sparkle": 1}, UnsupportedError, "unknown key 'sparkle'"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, changes: Config, error: type[VlmTrtError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        read(tmp_path, changes)


def test_a_flat_file_is_refused_by_its_own_names(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json: num_attention_heads is 3, not divisible by"):
        read(tmp_path, {"num_attention_heads": 3}, FLAT)
    with pytest.raises(UnsupportedError, match="unknown key 'sparkle'"):
        read(tmp_path, {"sparkle": 1}, FLAT)


def test_an_old_name_of_the_towers_type(tmp_path: Path) -> None:
    assert read(tmp_path, {"vision_config.model_type": "qwen2_vl"}) == read_config(GOLDEN_FOLDER)


@pytest.mark.parametrize(
    ("changes", "bounds"),
    [
        ({}, (3136, 12845056)),
        ({"min_pixels": ..., "max_pixels": ...}, (3136, 1003520)),  # the class's
        ({"min_pixels": ..., "max_pixels": ..., "size": {"min_pixels": 4000, "max_pixels": 5000}}, (4000, 5000)),
        ({"max_pixels": None, "size": {"shortest_edge": 4000, "longest_edge": 5000}}, (3136, 5000)),
        ({"size": {"shortest_edge": 4000, "longest_edge": 5000}}, (3136, 12845056)),
        ({"do_pad": None, "do_center_crop": None, "image_processor_type": "Qwen2VLImageProcessorFast"},
         (3136, 12845056)),
    ],
)  # fmt: skip
def test_the_bounds_of_a_picture(tmp_path: Path, changes: Config, bounds: tuple[int, int]) -> None:
    rule = with_processor(tmp_path, changed({**QWEN2_PROCESSOR, "patch_size": 4}, changes)).pictures
    assert isinstance(rule, AnySize) and (rule.min_pixels, rule.max_pixels) == bounds


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"resample": 2}, UnsupportedError, "resample is 2; only 3 is supported"),
        ({"do_resize": False}, UnsupportedError, "do_resize is False; only True is supported"),
        ({"do_center_crop": True}, UnsupportedError, "do_center_crop is True; only False is supported"),
        ({"merge_size": 4}, CheckpointError, "merge_size is 4, and the tower's in config.json is 2"),
        ({"temporal_patch_size": 1}, CheckpointError, "temporal_patch_size is 1, and the tower's in config.json is 2"),
        ({"min_pixels": 20000000}, CheckpointError, "min_pixels is 20000000, more than max_pixels 12845056"),
        ({"min_pixels": ..., "size": {"longest_edge": 9}}, CheckpointError, "size.shortest_edge is missing"),
        ({"image_processor_type": "CLIPImageProcessor"}, UnsupportedError, "supported: Qwen2VLImageProcessor"),
        ({"shimmer": 1}, UnsupportedError, "unknown key 'shimmer'"),
    ],
)  # fmt: skip
def test_processors_that_are_refused(tmp_path: Path, changes: Config, error: type[VlmTrtError], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        with_processor(tmp_path, changed({**QWEN2_PROCESSOR, "patch_size": 4}, changes))


def test_the_tokenizer_belongs_to_the_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, "qwen2_vl", golden("qwen2_vl"), 4)
    model = read_config(tmp_path)
    with pytest.raises(CheckpointError, match="tokenizer.json is missing"):
        check_checkpoint(tmp_path, model)
    qwen2_like(tmp_path / "tokenizer.json")
    check_checkpoint(tmp_path, model)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json", model)
    assert tokenizer.stop_ids == {2} and tokenizer.end_of_text == 2
    assert tokenizer.visible_bytes(tokenizer.id_of("<|box_start|>")) == b"<|box_start|>"
    assert tokenizer.visible_bytes(tokenizer.id_of("<|im_end|>")) == b""
    with pytest.raises(BundleError, match="has no added token <tool_call>"):
        tokenizer.id_of("<tool_call>")


def test_limits_bound_the_pictures(tmp_path: Path) -> None:
    model = read_config(written(tmp_path, "qwen2_vl", QWEN2_VL_2B, 28))
    usual = usual_limits(model)
    assert (usual.min_pixels, usual.max_pixels, usual.max_images) == (model.any_size.token_pixels**2 * 4, 1_003_520, 1)
    assert within(model, usual).most_picture_tokens == 1280
    narrow = replace(usual, max_pixels=100_000)
    assert within(model, narrow).most_picture_tokens == 127
    require_limits(model, narrow)
    (profile,) = profiles(Component.VISION_ENCODER, model, narrow, Precision.FP16)
    least, _, most = profile.shapes["pixel_values"][1]
    assert (least, most) == (4, 4 * 127)


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        ({"max_pixels": 1 << 25}, "takes pictures of 3136 to 12845056 pixels, and 3136 to 33554432 are asked for"),
        ({"min_pixels": 1}, "and 1 to 1003520 are asked for; stay within them, with --min-pixels and --max-pixels"),
        ({"min_pixels": 9_000, "max_pixels": 8_000}, "pictures of 9000 to 8000 pixels cannot be made of squares"),
        ({"max_seq_tokens": 1_000}, "--max-seq-tokens 1000 does not hold one picture (1280 tokens)"),
    ],
)
def test_bounds_that_cannot_be(tmp_path: Path, bounds: dict[str, int], sentence: str) -> None:
    model = read_config(written(tmp_path, "qwen2_vl", QWEN2_VL_2B, 28))
    with pytest.raises(UsageError, match=re.escape(sentence)):
        require_limits(model, replace(usual_limits(model), **bounds))
