"""preprocessor_config.json: every rule that is carried out, and a sentence for what is not."""

import json
from pathlib import Path

import pytest

from tests.families.published.published_configs import Config, changed, processor_of
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.picture_rules import CentreCrop, PadSquare, PictureRule, Squash
from vlm_trt.families.published.pictures import picture_rule

CLIP, SIGLIP = "llava15", "paligemma"
PADDED = {"image_processor_type": "LlavaImageProcessorFast", "do_pad": True}


def rule_of(folder: Path, name: str, changes: Config) -> PictureRule:
    """Of a file for pictures of 32 pixels."""
    (folder / "preprocessor_config.json").write_text(json.dumps(changed(processor_of(name, 32), changes)))
    return picture_rule(folder, 32)


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        (CLIP, {}, CentreCrop),
        (CLIP, {"size": 32, "crop_size": 32}, CentreCrop),  # as old files have it
        (CLIP, {"image_processor_type": ..., "feature_extractor_type": "CLIPFeatureExtractor"}, CentreCrop),
        (CLIP, {"image_processor_type": "CLIPImageProcessorFast", "do_pad": False, "pad_size": None}, CentreCrop),
        (CLIP, {"image_mean": ..., "image_std": ..., "resample": ..., "rescale_factor": ...}, CentreCrop),
        (CLIP, PADDED, PadSquare),
        (CLIP, {**PADDED, "do_center_crop": False}, PadSquare),
        (CLIP, {"do_center_crop": False, "size": {"height": 32, "width": 32}}, Squash),
        (SIGLIP, {}, Squash),
        (SIGLIP, {"do_convert_rgb": None, "image_seq_length": 16, "processor_class": "PaliGemmaProcessor"}, Squash),
        (SIGLIP, {"size": 32, "_valid_processor_keys": ["images"]}, Squash),
    ],
)
def test_a_rule(tmp_path: Path, name: str, changes: Config, kind: type[PictureRule]) -> None:
    rule = rule_of(tmp_path, name, changes)
    assert type(rule) is kind
    assert rule.mean == ((0.48145466, 0.4578275, 0.40821073) if name == CLIP else (0.5, 0.5, 0.5))


def test_a_short_side_beyond_the_crop(tmp_path: Path) -> None:
    rule = rule_of(tmp_path, CLIP, {"size": {"shortest_edge": 40}})
    assert isinstance(rule, CentreCrop) and rule.short_side == 40


def test_the_file_that_transformers_5_saves(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"processor_class": "PaliGemmaProcessor", "image_processor": processor_of(SIGLIP, 32)})
    )
    assert isinstance(picture_rule(tmp_path, 32), Squash)
    with pytest.raises(CheckpointError, match="processor_config.json: image_processor.size is 32, and vision_config"):
        picture_rule(tmp_path, 64)


@pytest.mark.parametrize(
    ("name", "changes", "kind", "sentence"),
    [
        (CLIP, {"image_processor_type": "ViltImageProcessor"}, UnsupportedError, "type is 'ViltImageProcessor'; supp"),
        (CLIP, {"image_processor_type": ...}, UnsupportedError, "image_processor_type is None; supported: CLIPImage"),
        (CLIP, {"do_resize": False}, UnsupportedError, "do_resize is False; only True is supported"),
        (CLIP, {"do_normalize": False}, UnsupportedError, "do_normalize is False; only True is supported"),
        (CLIP, {"resample": 2}, UnsupportedError, "resample is 2; only 3 is supported"),
        (CLIP, {"rescale_factor": 0.5}, UnsupportedError, "rescale_factor is 0.5; only 1/255 is supported"),
        (CLIP, {"do_pad": True}, UnsupportedError, "do_pad is True; CLIPImageProcessor with padding is not"),
        (CLIP, {"do_center_crop": False}, UnsupportedError, "do_center_crop is False with a size of the short side"),
        (CLIP, {"size": {"shortest_edge": 30}}, UnsupportedError, "size is 30, less than crop_size 32; a black"),
        (CLIP, {"crop_size": 30}, CheckpointError, "crop_size is 30, and vision_config.image_size in"),
        (CLIP, {"size": {"shortest_edge": 32, "longest_edge": 99}}, UnsupportedError, "longest_edge is 99; only None"),
        (CLIP, {**PADDED, "size": {"shortest_edge": 40}}, CheckpointError, "size is 40, and vision_config.image_size"),
        (SIGLIP, {"size": {"height": 32, "width": 64}}, UnsupportedError, "size is 32×64; only squares are supported"),
        (SIGLIP, {"size": {"height": 64, "width": 64}}, CheckpointError, "size is 64, and vision_config.image_size"),
        (SIGLIP, {"size": {"width": 64}}, CheckpointError, "size.height is missing"),
        (SIGLIP, {"image_mean": [0.5]}, CheckpointError, "image_mean has 1 values instead of 3"),
        (SIGLIP, {"image_std": [0.5, 0, 0.5]}, CheckpointError, r"image_std\[1\] is 0, not a number from 0.0001"),
        (CLIP, {**PADDED, "pad_size": {"height": 40}}, UnsupportedError, "pad_size is .*; only None is supported"),
        (SIGLIP, {"crop_pct": 0.9}, UnsupportedError, "unknown key 'crop_pct'; it may change"),
    ],
)  # fmt: skip
def test_a_rule_that_is_refused(
    tmp_path: Path, name: str, changes: Config, kind: type[VlmTrtError], sentence: str
) -> None:
    with pytest.raises(kind, match=f"preprocessor_config.json: .*{sentence}"):
        rule_of(tmp_path, name, changes)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="/preprocessor_config.json is missing; copy it from the published"):
        picture_rule(tmp_path, 32)
