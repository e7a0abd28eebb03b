"""Frames of videos against those that Qwen2-VL's processor takes, their sizes, and their patches."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import arrays
from tests.families.made_videos import stacked_frames
from tests.families.published.published_configs import QWEN2_5_VL_7B, QWEN2_VL_7B, written
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.families.clips import Clip
from vlm_trt.families.qwen2_5_vl import config as qwen2_5_vl
from vlm_trt.families.qwen2_vl import config as qwen2_vl
from vlm_trt.families.qwen2_vl.frames import EvenFrames, frame_rule, preprocess, time_step

POSITIONS = 128_000  # the original takes them for so many


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    return qwen2_vl.read_config(written(tmp_path, "qwen2_vl", QWEN2_VL_7B, 14))


@pytest.fixture
def later(tmp_path: Path) -> ModelConfig:
    """Qwen2.5-VL, whose tower has windows."""
    return qwen2_5_vl.read_config(written(tmp_path / "later", "qwen2_5_vl", QWEN2_5_VL_7B, 14))


def asking(rule: EvenFrames, rate: float) -> EvenFrames:
    return replace(rule, rule=replace(rule.rule, frames=replace(rule.rule.frames, rate=rate)))


def clip_of(frames: int, rate: float, size: tuple[int, int] = (28, 28)) -> Clip:
    return Clip(np.zeros((frames, size[1], size[0], 3), np.uint8), b"", (0.0,) * frames, 1.0, rate)


@pytest.mark.shared
def test_frames_are_the_originals_choice(shared: Path, model: ModelConfig, later: ModelConfig) -> None:
    cases = json.loads((shared / "golden/qwen2_vl/preprocess/video_sampling.json").read_text())
    assert len(cases) >= 10
    for case in cases:
        total, fps = case["total_num_frames"], case["fps"]
        places = asking(frame_rule(model, POSITIONS), case["target_fps"]).chosen(total, fps)
        assert places == case["indices"], (total, fps)
        rule, tower = later.pictures, later.any_size
        assert isinstance(rule, AnySize)
        step = time_step(clip_of(len(places), len(places) / total * fps), rule, tower)
        assert step == pytest.approx(2 * case["second_per_grid"], rel=1e-6)


def test_few_frames_are_all_or_whole_patches(model: ModelConfig) -> None:
    rule = frame_rule(model, POSITIONS)
    assert list(rule.chosen(1, 30.0)) == [0]
    assert [list(rule.chosen(count, 30.0)) for count in (2, 3, 5)] == [[0, 1], [0, 1], [0, 1, 2, 3]]
    assert len(rule.chosen(216_000, 30.0)) == 768


@pytest.mark.shared
def test_patches_are_the_originals(shared: Path, model: ModelConfig) -> None:
    cases = json.loads((shared / "golden/qwen2_vl/preprocess/video_expected.json").read_text())["cases"]
    pixels = arrays(shared / "golden/qwen2_vl/preprocess/video_pixels.npz")
    assert len(cases) == 6
    for case in cases:
        assert isinstance(model.pictures, AnySize)
        bounds = replace(model.pictures, min_pixels=case["min_pixels"], max_pixels=case["max_pixels"])
        bounded = replace(model, pictures=bounds)
        (path,) = (shared / "golden/pictures").glob(f"video_{case['video']}_{case['frames']}x*.png")
        frames, rule = stacked_frames(path, case["frames"]), frame_rule(bounded, POSITIONS)
        height, width = frames[0].shape[:2]
        (size,) = rule.sizes(len(frames), (width, height))
        resized = np.stack([np.asarray(Image.fromarray(one).resize(size, rule.filter)) for one in frames])
        padded = np.concatenate([resized, resized[-1:]]) if len(frames) % 2 else resized
        assert hashlib.sha256(padded.tobytes()).hexdigest() == case["sha256_u8_pil_frames"], case["key"]
        found = preprocess(Clip(resized, b"", (0.0,) * len(frames), 1.0, 2.0), bounded)
        times, rows, columns = case["video_grid_thw"]
        assert found["pixel_values"].shape == (times, rows * columns, 1176)
        flat = found["pixel_values"].reshape(-1, 1176)
        places = np.unique(np.round(np.linspace(0, len(flat) - 1, 40)).astype(int))
        # Recorded with torchvision's resizing, which differs from Pillow's by a few levels.
        difference = np.abs(flat[places, ::7] - pixels[f"{case['key']}/pixels"])
        assert difference.max() <= 0.04 and difference.mean() <= 1e-4, case["key"]
        assert {name: len(array) for name, array in found.items()} == dict.fromkeys(found, times)


def test_all_frames_together_have_a_bound(model: ModelConfig) -> None:
    """Nine tenths of the positions, however many there are, and a floor that the least area makes."""
    for positions in (4096, 32_768):
        rule = frame_rule(model, positions)
        for count in (4, 60, 768):
            ((width, height),) = rule.sizes(count, (1920, 1080))
            tokens = width * height // 784 * count // 2
            assert tokens <= max(0.9 * positions, 4.2 * count / 2), (positions, count)
    assert rule.sizes(4, (640, 480)) == [(644, 476)]  # room enough


def test_groups_are_looked_at_alike(later: ModelConfig) -> None:
    """Rope and windows are the same for each; the odd last frame stands twice."""
    values = np.random.default_rng(0).integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    found = preprocess(Clip(values, b"", (0.0, 0.5, 1.0), 1.5, 2.0), later)
    assert set(found) == {"pixel_values", "rope_cos", "rope_sin", "window_patches", "patch_slots"}
    for name, array in found.items():
        assert len(array) == 2 and (name == "pixel_values" or np.array_equal(array[0], array[1]))
    first, second = found["pixel_values"].reshape(2, -1, 3, 2, 196)
    assert np.array_equal(second[:, :, 0], second[:, :, 1]) and not np.array_equal(first[:, :, 0], first[:, :, 1])
