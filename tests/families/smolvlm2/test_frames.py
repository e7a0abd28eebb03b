"""Frames of videos against those that SmolVLM2's processor takes, and what the prompt says of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SHARED, arrays
from tests.families.made_videos import stacked_frames
from tests.families.published.published_configs import SMOLVLM2_2B, SMOLVLM2_500M, written
from vlm_trt.bundle.picture_rules import FrameSampling
from vlm_trt.families.clips import Clip
from vlm_trt.families.smolvlm2.config import read_config
from vlm_trt.families.smolvlm2.frames import SpreadFrames, clock_time, frame_rule, in_words, preprocess

PUBLISHED = {"500M": (SMOLVLM2_500M, 512), "2.2B": (SMOLVLM2_2B, 384)}
RULE = SpreadFrames(FrameSampling(rate=1.0, least=1, most=64), 512, 512)


def recorded(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "golden/smolvlm2/preprocess/video_expected.json").read_text())
    return found


@pytest.mark.shared
def test_frames_are_the_originals_choice(shared: Path) -> None:
    cases = recorded(shared)["sample_frames_fps1_max64_skip1"]
    assert len(cases) == 6
    for case in cases:
        assert RULE.chosen(case["total_num_frames"], case["fps"]) == case["indices"], case["total_num_frames"]


@pytest.mark.shared
def test_pixels_are_the_originals(shared: Path, tmp_path: Path) -> None:
    cases = recorded(shared)["cases"]
    assert {case["key"].partition("/")[0] for case in cases} == set(PUBLISHED)
    pixels = arrays(SHARED / "golden/smolvlm2/preprocess/video_pixels.npz")
    for case in cases:
        config, side = PUBLISHED[case["key"].partition("/")[0]]
        model = read_config(written(tmp_path, "smolvlm2", config, side))
        (path,) = (shared / "golden/pictures").glob(f"video_{case['video']}_{case['frames']}x*.png")
        frames, rule = stacked_frames(path, case["frames"]), frame_rule(model, 8192)
        height, width = frames[0].shape[:2]
        sizes = rule.sizes(len(frames), (width, height))
        assert sizes == [tuple(case["first_resize_hw"][::-1]), (side, side)]
        resized = np.stack([np.asarray(steps(Image.fromarray(one), sizes)) for one in frames])
        assert hashlib.sha256(resized.tobytes()).hexdigest() == case["sha256_u8_pil_frames"], case["key"]
        found = preprocess(Clip(resized, b"", (0.0,), 1.0, 1.0), model)["pixel_values"]
        assert list(found.shape) == case["pixel_values_shape"] and found.dtype == np.float32
        places = np.unique(np.round(np.linspace(0, side - 1, 12)).astype(int))
        # Recorded with torchvision's resizing, which differs from Pillow's by a few levels.
        difference = np.abs(found[:, :, places][..., places] - pixels[f"{case['key']}/pixels"])
        assert difference.max() <= 0.03 and difference.mean() <= 1e-3, case["key"]


def steps(picture: Image.Image, sizes: Any) -> Image.Image:
    for size in sizes:
        picture = picture.resize(size, RULE.filter)
    return picture


def test_the_files_own_sampling_counts(tmp_path: Path) -> None:
    folder = written(tmp_path, "smolvlm2", SMOLVLM2_500M, 512)
    file = folder / "preprocessor_config.json"
    sampling = {"fps": 0.5, "max_frames": 10, "video_size": {"longest_edge": 1024}}
    file.write_text(json.dumps({**json.loads(file.read_text()), "video_sampling": sampling}))
    rule = frame_rule(read_config(folder), 8192)
    assert rule == SpreadFrames(FrameSampling(rate=0.5, least=1, most=10), 1024, 512)
    assert rule.chosen(60, 10.0) == [0, 29, 59]


def test_short_videos_have_a_frame() -> None:
    assert RULE.chosen(1, 30.0) == [0] and RULE.chosen(3, 240.0) == [0] and RULE.chosen(2, 1.0) == [0, 1]


@pytest.mark.shared
def test_numbers_in_words_are_the_originals(shared: Path) -> None:
    import gzip

    records = json.loads(gzip.decompress((shared / "golden/smolvlm2/prompts.json.gz").read_bytes()))
    words = records["frame_count_words"]
    assert {number: in_words(int(number)) for number in words} == words and len(words) == 64


def test_larger_numbers_and_times() -> None:
    assert [in_words(one) for one in (100, 101, 342, 999)] == [
        "one hundred", "one hundred and one", "three hundred and forty-two", "nine hundred and ninety-nine",
    ]  # fmt: skip
    assert [clock_time(one) for one in (0, 59.99, 60, 7199.5)] == ["00:00", "00:59", "01:00", "119:59"]
