"""Pictures → crops: the whole of it as a square, then squares that overlap, row by row; and how these are averaged.

Resized by Pillow, as the published code does where libvips is not installed; libvips would make other pixels, up to 192
of 255 apart where a picture is enlarged.
"""

from dataclasses import dataclass
from math import ceil, floor, sqrt

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import CropTower, PoolingConnector
from vlm_trt.bundle.picture_rules import Crops
from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import AS_IT_IS, Detail, Look
from vlm_trt.families.pixels import normalized

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """How many overlapping crops a picture has."""

    rows: int
    columns: int


def preprocess(picture: Image, model: ModelConfig, look: Look = AS_IT_IS) -> PictureInputs:
    """`pixel_values` [1, crops, 3, side, side], `pool_rows` and `pool_columns` [1, crops, square, grid] of a picture.

    Raises:
        PromptError: the look has bounds, which such a model has no use for.
    Source: image_crops.py and vision.py of vikhyat/moondream.
    """
    rule, tower, connector = looking(model, look).pictures, model.crops, model.connector
    assert isinstance(rule, Crops) and isinstance(connector, PoolingConnector)
    grid = Grid(1, 1) if look.detail is Detail.LOW else grid_of(picture.size, rule, tower)
    crops = crops_of(picture, grid, rule, tower)
    return {
        "pixel_values": normalized(crops, rule)[None],
        "pool_rows": _pooling(grid, rule, tower, connector.side, across=False)[None],
        "pool_columns": _pooling(grid, rule, tower, connector.side, across=True)[None],
    }


def grid_of(size: tuple[int, int], rule: Crops, tower: CropTower) -> Grid:
    """The grid of a picture of that width and height."""
    window, margins = _window(rule, tower) * tower.patch_size, 2 * rule.margin * tower.patch_size
    width, height = size[0] - margins, size[1] - margins
    if width <= window or height <= window:
        return Grid(1, 1)
    most, least_rows, least_columns = rule.most_crops, ceil(height / window), ceil(width / window)
    if least_rows * least_columns > most:
        ratio = sqrt(most / (least_rows * least_columns))
        return Grid(max(1, floor(least_rows * ratio)), max(1, floor(least_columns * ratio)))
    rows = max(floor(sqrt(most * height / width)), least_rows)
    columns = max(floor(sqrt(most * width / height)), least_columns)
    if rows * columns > most:
        if columns > rows:
            columns = floor(most / rows)
        else:
            rows = floor(most / columns)
    return Grid(max(1, rows), max(1, columns))


def crops_of(picture: Image, grid: Grid, rule: Crops, tower: CropTower) -> list[Image]:
    """The whole picture and its crops, RGB squares of the tower's size."""
    side, step = tower.image_size, _window(rule, tower) * tower.patch_size
    margins = 2 * rule.margin * tower.patch_size
    resized = picture.resize((grid.columns * step + margins, grid.rows * step + margins), Resampling.LANCZOS)
    corners = [(column * step, row * step) for row in range(grid.rows) for column in range(grid.columns)]
    cut = [resized.crop((left, top, left + side, top + side)) for left, top in corners]
    return [picture.resize((side, side), Resampling.LANCZOS), *cut]


def _window(rule: Crops, tower: CropTower) -> int:
    """Patches from one crop to the next."""
    return tower.grid - 2 * rule.margin


def _pooling(grid: Grid, rule: Crops, tower: CropTower, side: int, *, across: bool) -> Floats:
    """What each row, or column, of each crop adds to the square's: [crops, side, tower.grid], the whole picture's 0.

    The crops, each without the margins that its neighbours have, lie beside each other; of them adaptive average
    pooling makes a square. Averages of a rectangle are those of its rows' averages.
    """
    count, window = grid.columns if across else grid.rows, _window(rule, tower)
    averages = _averages(count * window + 2 * rule.margin, side)
    of_each = np.zeros((count, side, tower.grid), dtype=np.float32)
    for at in range(count):
        first = 0 if at == 0 else rule.margin
        last = tower.grid if at == count - 1 else tower.grid - rule.margin
        of_each[at, :, first:last] = averages[:, at * window + first : at * window + last]
    places = [(row, column) for row in range(grid.rows) for column in range(grid.columns)]
    chosen = of_each[[column if across else row for row, column in places]]
    return np.concatenate([np.zeros((1, side, tower.grid), dtype=np.float32), chosen])


def _averages(length: int, side: int) -> Floats:
    """Adaptive average pooling along one axis as a matrix [side, length]."""
    matrix = np.zeros((side, length), dtype=np.float32)
    for at in range(side):
        first, last = at * length // side, -(-(at + 1) * length // side)
        matrix[at, first:last] = 1 / (last - first)
    return matrix
