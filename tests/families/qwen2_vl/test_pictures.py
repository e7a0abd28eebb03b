"""Patches against the original's, where they lie, and windows of pictures of any size."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tests.conftest import ROOT, SHARED, arrays
from tests.families.published.published_configs import QWEN2_5_VL_7B, QWEN2_VL_7B, written
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import ImageError
from vlm_trt.bundle.parts import FrameTower, WindowTower
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import signature
from vlm_trt.families.messages import Detail, Look
from vlm_trt.families.qwen2_5_vl import config as qwen2_5_vl
from vlm_trt.families.qwen2_vl import config as qwen2_vl
from vlm_trt.families.qwen2_vl.pictures import grid_of, patch_angles, preprocess, resized, windows

OWN = ROOT / "tests" / "golden"
FOLDERS = [OWN, pytest.param(SHARED / "golden", marks=pytest.mark.shared)]
READERS = {"qwen2_vl": qwen2_vl.read_config, "qwen2_5_vl": qwen2_5_vl.read_config}
BOUNDS = {"published": (3136, 12845056), "max_1003520": (3136, 1003520), "min_200704": (200704, 12845056)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelConfig]:
    """Of the published sizes."""
    root = tmp_path_factory.mktemp("published")
    configs = {"qwen2_vl": QWEN2_VL_7B, "qwen2_5_vl": QWEN2_5_VL_7B}
    return {name: READERS[name](written(root / name, name, config, 14)) for name, config in configs.items()}


def parts_of(model: ModelConfig) -> tuple[AnySize, FrameTower | WindowTower]:
    assert isinstance(model.pictures, AnySize) and isinstance(model.vision, FrameTower | WindowTower)
    return model.pictures, model.vision


def window_tower(model: ModelConfig) -> WindowTower:
    assert isinstance(model.vision, WindowTower)
    return model.vision


def loaded(path: Path, note: str) -> Image.Image:
    """The picture as the reference was given it."""
    opened: Image.Image = Image.open(path)
    if "composited on WHITE" in note:
        return Image.alpha_composite(Image.new("RGBA", opened.size, "white"), opened.convert("RGBA")).convert("RGB")
    return ImageOps.exif_transpose(opened).convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    colours = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colours)


@pytest.mark.parametrize("folder", FOLDERS, ids=["own", "shared"])
def test_patches_are_the_originals(folder: Path, models: dict[str, ModelConfig]) -> None:
    if not folder.is_dir():
        pytest.skip("further pictures lie beside the project in ../shared, which this clone lacks")
    cases = json.loads((folder / "qwen2_vl" / "preprocess" / "expected.json").read_text())["cases"]
    recorded = arrays(folder / "qwen2_vl" / "preprocess" / "pixels.npz")
    assert len(cases) >= 9
    for case in cases:
        model = with_bounds(models["qwen2_vl"], *BOUNDS[case["variant"]])
        rule, tower = parts_of(model)
        picture = loaded(folder / "pictures" / case["picture"], case.get("note", ""))
        assert grid_of(picture.size, rule, tower) == tuple(case["image_grid_thw"][1:]), case["key"]
        scaled = picture.resize(resized(picture.size, rule, tower), Image.Resampling.BICUBIC)
        assert hashlib.sha256(scaled.tobytes()).hexdigest() == case["sha256_u8"], case["key"]
        found = preprocess(picture, model)["pixel_values"]
        assert found.shape == (1, *case["pixel_values_shape"]) and found.dtype == np.float32
        rows = np.unique(np.round(np.linspace(0, found.shape[1] - 1, 40)).astype(int))
        difference = np.abs(found[0, rows, ::7] - recorded[f"{case['key']}/pixels"])
        assert difference.max() <= 1e-6, case["key"]


def with_bounds(model: ModelConfig, least: int, most: int) -> ModelConfig:
    rule, _ = parts_of(model)
    return replace(model, pictures=replace(rule, min_pixels=least, max_pixels=most))


@pytest.mark.parametrize(
    ("family", "case"), [("qwen2_vl", "one_image"), ("qwen2_5_vl", "one_image"), ("qwen2_5_vl", "two_images")]
)
def test_patches_of_the_golden_cases(family: str, case: str) -> None:
    model = READERS[family](OWN / family)
    stored = arrays(OWN / family / f"{case}.npz")
    pictures = [Image.fromarray(stored[name]) for name in sorted(stored) if name.startswith("image.")]
    made = [preprocess(one, model)["pixel_values"][0] for one in pictures]
    assert np.abs(np.concatenate(made) - stored["in.pixel_values"]).max() <= 1e-6
    rule, tower = parts_of(model)
    assert [grid_of(one.size, rule, tower) for one in pictures] == [
        tuple(one[1:]) for one in stored["in.image_grid_thw"]
    ]


@pytest.mark.parametrize("family", list(READERS))
def test_inputs_are_those_of_the_graph(family: str) -> None:
    model = READERS[family](OWN / family)
    for size in ((70, 45), (8, 8), (9, 300), (1, 1)):
        inputs = preprocess(noise(*size), model)
        sizes: dict[str, int] = {}
        tensors = signature(Component.VISION_ENCODER, model, Limits(256, 1, 1), Precision.FP32).inputs
        assert [tensor.name for tensor in tensors] == list(inputs)
        for tensor in tensors:
            array = inputs[tensor.name]
            assert array.dtype == tensor.dtype and len(array) == 1 and array.flags.c_contiguous
            for axis, extent in zip(tensor.axes, array.shape, strict=True):
                assert extent == (axis if isinstance(axis, int) else sizes.setdefault(axis, extent))


def test_detail_changes_nothing(models: dict[str, ModelConfig]) -> None:
    picture = noise(60, 90)
    for detail in Detail:
        inputs = preprocess(picture, models["qwen2_5_vl"], Look(detail))
        for name, array in preprocess(picture, models["qwen2_5_vl"]).items():
            assert np.array_equal(inputs[name], array)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((70, 98), (56, 112)),  # 2.5 and 3.5 tokens, to the even number
        ((1, 1), (56, 56)),
        ((30, 20), (84, 56)),
        ((3000, 2000), (2996, 1988)),
        ((8000, 8000), (3584, 3584)),
        ((200, 1), (812, 28)),
        ((32768, 164), (32760, 168)),
    ],
)
def test_sizes(models: dict[str, ModelConfig], size: tuple[int, int], expected: tuple[int, int]) -> None:
    rule, tower = parts_of(models["qwen2_vl"])
    assert resized(size, rule, tower) == expected
    assert resized(size[::-1], rule, tower) == expected[::-1]


@given(st.integers(1, 32_768), st.integers(1, 32_768), st.integers(1, 20_000_000), st.integers(1, 20_000_000))
def test_no_picture_is_beyond_the_bound(width: int, height: int, one: int, other: int) -> None:
    model = qwen2_vl.read_config(OWN / "qwen2_vl")
    rule, tower = parts_of(with_bounds(model, min(one, other), max(one, other)))
    try:
        found = resized((width, height), rule, tower)
    except ImageError:
        return
    assert found[0] * found[1] <= rule.max_pixels and min(found) >= tower.token_pixels
    assert found[0] % tower.token_pixels == found[1] % tower.token_pixels == 0


def test_pictures_that_are_refused(models: dict[str, ModelConfig]) -> None:
    rule, tower = parts_of(models["qwen2_vl"])
    with pytest.raises(ImageError, match="picture of 4000×19 pixels is more than 200 times as long as wide, and this"):
        resized((4000, 19), rule, tower)
    narrow, _ = parts_of(with_bounds(models["qwen2_vl"], 3136, 50_000))
    with pytest.raises(ImageError, match="4000×20 pixels becomes 3136×28, beyond the 50000 pixels that are taken"):
        resized((4000, 20), narrow, tower)


def test_angles_are_of_rows_and_columns(models: dict[str, ModelConfig]) -> None:
    _, tower = parts_of(models["qwen2_vl"])
    angles = patch_angles((4, 6), tower)
    assert angles.shape == (24, 40) and angles.dtype == np.float32
    frequencies = 1 / 10_000 ** (np.arange(0, 40, 2) / 40)
    # The first square of 2×2 patches, then the one to its right, …; the fourth is the first of the second row.
    lies = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    for patch, (row, column) in enumerate(lies):
        assert np.allclose(angles[patch], np.concatenate([row * frequencies, column * frequencies]), atol=1e-6)
    assert np.allclose(angles[12, :20], 2 * frequencies, atol=1e-6) and not angles[12, 20:].any()


def tokens_by_window(rows: int, columns: int, across: int) -> list[list[int]]:
    """Numbers of tokens in reading order, window by window: written once more, with loops."""
    return [
        [
            row * columns + column
            for row in range(top, min(top + across, rows))
            for column in range(left, min(left + across, columns))
        ]
        for top in range(0, rows, across)
        for left in range(0, columns, across)
    ]


@given(rows=st.integers(1, 11), columns=st.integers(1, 11))
def test_windows_hold_every_patch_once(rows: int, columns: int) -> None:
    tower = window_tower(qwen2_5_vl.read_config(OWN / "qwen2_5_vl"))  # windows of 2×2 tokens
    patches, slots = windows((2 * rows, 2 * columns), tower)
    expected = tokens_by_window(rows, columns, 2)
    assert len(patches) == len(expected) * 16 and len(slots) == 4 * rows * columns
    for at, tokens in enumerate(expected):
        window = patches[16 * at : 16 * at + 16]
        assert list(window[window >= 0]) == [4 * token + place for token in tokens for place in range(4)]
    assert np.array_equal(patches[slots], np.arange(4 * rows * columns))


def test_windows_of_the_published_size(models: dict[str, ModelConfig]) -> None:
    tower = window_tower(models["qwen2_5_vl"])
    patches, slots = windows((34, 46), tower)  # 17×23 tokens: 5×6 windows of 4×4
    assert patches.shape == (30 * 64,) and slots.shape == (34 * 46,)
    assert (patches >= 0).sum() == 34 * 46


def test_the_pictures_rows_do_not_depend_on_strips(models: dict[str, ModelConfig]) -> None:
    """Against one transposition of the whole picture."""
    rule, tower = parts_of(models["qwen2_vl"])
    picture = noise(84, 28 * 37)
    found = preprocess(picture, models["qwen2_vl"])["pixel_values"][0]
    values: NDArray[Any] = (np.asarray(picture, dtype=np.float32) / np.float32(255) - np.array(rule.mean)) / np.array(
        rule.std
    )
    whole = values.reshape(37, 2, 14, 3, 2, 14, 3).transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, 1, 196)
    expected = np.repeat(whole, tower.frames_per_patch, axis=2).reshape(-1, tower.patch_values)
    assert np.abs(found - expected).max() <= 1e-6
