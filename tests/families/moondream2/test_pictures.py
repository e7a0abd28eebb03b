"""Moondream's crops against its own code's, and its pooling against torch's."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import SHARED
from tests.families.test_pixels import loaded
from tests.golden_families import FOLDER
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import PromptError
from vlm_trt.bundle.picture_rules import Crops
from vlm_trt.exporter.modules.connectors import PoolingProjection
from vlm_trt.families.messages import Detail, Look
from vlm_trt.families.moondream2.config import read_config
from vlm_trt.families.moondream2.pictures import Grid, crops_of, grid_of, preprocess

EXPECTED = json.loads((FOLDER / "moondream2" / "preprocess" / "expected.json").read_text())


@pytest.fixture(scope="module")
def model() -> ModelConfig:
    return read_config(FOLDER / "moondream2")


def rule_of(model: ModelConfig) -> Crops:
    assert isinstance(model.pictures, Crops)
    return model.pictures


@pytest.mark.parametrize(("height", "width", "rows", "columns"), EXPECTED["tilings_h_w_rows_cols"])
def test_grids_are_the_originals(height: int, width: int, rows: int, columns: int, model: ModelConfig) -> None:
    assert grid_of((width, height), rule_of(model), model.crops) == Grid(rows, columns)


@pytest.mark.parametrize("folder", [FOLDER, pytest.param(SHARED / "golden", marks=pytest.mark.shared)])
def test_crops_are_the_originals(folder: Path, model: ModelConfig) -> None:
    """Byte for byte those that its code makes with Pillow."""
    if not folder.is_dir():
        pytest.skip("further pictures lie beside the project in ../shared, which this clone lacks")
    seen = 0
    for case in EXPECTED["cases"]:
        path = folder / "pictures" / case["picture"]
        if not path.exists():
            continue
        picture = loaded(path, "composited on WHITE" if path.name.startswith(("rgba", "la", "p_")) else "")
        if list(picture.size) != case["loaded_wh"]:
            continue
        grid = grid_of(picture.size, rule_of(model), model.crops)
        crops = crops_of(picture, grid, rule_of(model), model.crops)
        digest = hashlib.sha256(b"".join(np.asarray(one).tobytes() for one in crops)).hexdigest()
        plain = crops_of(Image.open(path).convert("RGB"), grid, rule_of(model), model.crops)
        as_it_is = hashlib.sha256(b"".join(np.asarray(one).tobytes() for one in plain)).hexdigest()
        assert case["sha256_u8_pil"] in (digest, as_it_is), case["key"]
        assert [grid.rows, grid.columns] == case["tiling"] and len(crops) == case["crops_shape"][0]
        seen += 1
    assert seen >= 6


@pytest.mark.parametrize("size", [(640, 480), (500, 4000), (300, 200), (900, 910)])
@torch.inference_mode()
def test_pooling_with_matrices_is_adaptive_pooling(size: tuple[int, int], model: ModelConfig) -> None:
    """Crops laid beside each other without the margins that others have, and averaged by torch, are the same square."""
    colours = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    inputs = preprocess(Image.fromarray(colours), model)
    grid, margin = grid_of(size, rule_of(model), model.crops), rule_of(model).margin
    side, width, count = model.crops.grid, 3, grid.rows * grid.columns
    features = torch.randn(1 + count, side, side, width)
    rows = []
    for row in range(grid.rows):
        top, bottom = (0 if row == 0 else margin), (side if row == grid.rows - 1 else side - margin)
        pieces = []
        for column in range(grid.columns):
            left, right = (0 if column == 0 else margin), (side if column == grid.columns - 1 else side - margin)
            pieces.append(features[1 + row * grid.columns + column, top:bottom, left:right])
        rows.append(torch.cat(pieces, dim=1))
    whole = torch.cat(rows).permute(2, 0, 1)
    expected = torch.nn.functional.adaptive_avg_pool2d(whole, side).permute(1, 2, 0).reshape(-1, width)

    connector = torch.nn.Module.__new__(PoolingProjection)
    torch.nn.Module.__init__(connector)
    connector.up = connector.down = torch.nn.Identity()
    connector.activation = lambda x: x
    flat = features.reshape(1, -1, width)
    given = (torch.from_numpy(inputs[name]) for name in ("pool_rows", "pool_columns"))
    (both,) = connector(flat, *given)
    assert torch.equal(both[:, :width], features[0].reshape(-1, width))
    assert (both[:, width:] - expected).abs().max() <= 1e-6


def test_low_detail_is_one_crop_beside_the_whole(model: ModelConfig) -> None:
    picture = Image.new("RGB", (640, 480))
    assert preprocess(picture, model, Look(Detail.LOW))["pixel_values"].shape[1] == 2
    assert preprocess(picture, model)["pixel_values"].shape[1] == 9


def test_bounds_are_refused(model: ModelConfig) -> None:
    with pytest.raises(PromptError, match="min_pixels and max_pixels are for models that take pictures of any size"):
        preprocess(Image.new("RGB", (64, 64)), model, Look(max_pixels=1000))
