"""What a run of the vision tower takes, against what was measured, and which pictures fit."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.picture_memory import SHAPES
from tests.conftest import ROOT
from tests.families.published.published_configs import QWEN2_5_VL_7B, written
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import WindowTower
from vlm_trt.bundle.picture_memory import cpu_bytes, fitting_pixels, score_bytes
from vlm_trt.families.qwen2_5_vl.config import read_config

MEASURED = json.loads((ROOT / "benchmarks" / "results" / "picture_memory.json").read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return read_config(written(tmp_path_factory.mktemp("published"), "qwen2_5_vl", QWEN2_5_VL_7B, 14))


@pytest.mark.parametrize("name", [f"{shape}, {precision}" for shape in SHAPES for precision in ("fp32", "fp16")])
def test_estimates_are_near_what_was_measured(name: str) -> None:
    for one in MEASURED[name]:
        ratio = one["estimated_bytes"] / one["peak_bytes"]
        assert 0.99 <= ratio <= (1.4 if one["patches"] >= 4096 else 2.1), (one, ratio)


def test_the_published_bound(model: ModelConfig) -> None:
    """16,384 tokens are 65,536 patches."""
    assert model.most_patches == 65_536 and score_bytes(model, 16_384) == 16 * 16_384**2 * 4
    tower = model.vision
    assert isinstance(tower, WindowTower)
    windows_alone = replace(model, vision=replace(tower, full_layers=()))
    assert score_bytes(windows_alone, 16_384) == 16 * 16_384 * 64 * 4
    assert score_bytes(model, 5_120, images=3) == 3 * score_bytes(model, 5_120)


@given(available=st.integers(0, 1 << 40), images=st.integers(1, 8))
def test_what_fits_is_the_largest_that_fits(model: ModelConfig, available: int, images: int) -> None:
    pixels, token = fitting_pixels(model, available, images), model.any_size.token_pixels**2
    assert pixels % token == 0
    assert not pixels or cpu_bytes(model, model.any_size.patches_of(pixels), images) <= available
    assert cpu_bytes(model, model.any_size.patches_of(pixels + 2 * token), images) > available
