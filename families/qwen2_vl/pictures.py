"""Pictures and frames → patches, where each lies, and which ones share a window: what towers for any size are given.

Patches of one token lie together, tokens in reading order. The original permutes all of them into windows, and the
tokens back at the end; here the graph does so on the layers that have windows, by two indices made from the size alone.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.errors import ImageError
from vlm_trt.bundle.parts import FrameTower, WindowTower
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.families.contract import PictureInputs
from vlm_trt.families.looks import looking
from vlm_trt.families.messages import AS_IT_IS, Look
from vlm_trt.families.positions import Floats, Ints, rotary_angles

Size = tuple[int, int]  # width and height, pixels
Grid = tuple[int, int]  # rows and columns
AnySizeTower = FrameTower | WindowTower
_LONGEST_ASPECT = 200
_ROWS_AT_ONCE = 16  # of tokens


def preprocess(picture: Image, model: ModelConfig, look: Look = AS_IT_IS) -> PictureInputs:
    """What the tower is given of an RGB picture of any size, all of it with a leading axis of 1.

    `pixel_values` [1, patches, patch_values] fp32, columns by colour, frame, row and column; `rope_cos` and `rope_sin`
    [1, patches, head_dim/2] fp32; with windows also `window_patches` [1, slots] and `patch_slots` [1, patches] int64.

    Args:
        picture: to be looked at.
        model: its rule and tower.
        look: bounds of its area, within the rule's. Its detail changes nothing: there are no tiles.
    Raises:
        ImageError: it is far longer than wide.
        PromptError: the bounds are not within the rule's.
    Source: Qwen2VLImageProcessor and get_window_index of transformers, Pillow backend.
    """
    rule, tower = looking(model, look).pictures, model.vision
    assert isinstance(rule, AnySize) and isinstance(tower, AnySizeTower)
    scaled = picture.resize(resized(picture.size, rule, tower), Resampling.BICUBIC)
    return tower_inputs([[scaled]], rule, tower)


def tower_inputs(tiles: Sequence[Sequence[Image]], rule: AnySize, tower: AnySizeTower) -> PictureInputs:
    """As `preprocess` has it, with a leading axis of the tiles.

    Args:
        tiles: of each the frames that its patches are of, resized, all of one size; a single one is all of them.
        rule: mean and deviation.
        tower: has the sizes.
    """
    first, count = tiles[0][0], len(tiles)
    grid = first.height // tower.patch_size, first.width // tower.patch_size
    pixels = np.empty((count, grid[0] * grid[1], tower.patch_values), dtype=np.float32)
    for frames, found in zip(tiles, pixels, strict=True):
        _cut(frames, rule, tower, found)
    angles = patch_angles(grid, tower)
    alike: dict[str, NDArray[Any]] = {"rope_cos": np.cos(angles), "rope_sin": np.sin(angles)}
    if isinstance(tower, WindowTower):
        alike["window_patches"], alike["patch_slots"] = windows(grid, tower)
    return {"pixel_values": pixels, **{name: np.repeat(array[None], count, axis=0) for name, array in alike.items()}}


def resized(size: Size, rule: AnySize, tower: AnySizeTower) -> Size:
    """The size that a picture is brought to: whole tokens, the area between the rule's bounds.

    Raises:
        ImageError: it is far longer than wide. The original takes it where one side is a single token, and then its
            area may be beyond the bound; here, nothing is.
    Source: smart_resize of transformers; of two multiples as near, `round` takes the even one.
    """
    width, height = size
    if max(size) > _LONGEST_ASPECT * min(size):
        raise ImageError(
            f"a picture of {width}×{height} pixels is more than {_LONGEST_ASPECT} times as long as wide, and this "
            "model takes no such; cut out what matters"
        )
    token, area = tower.token_pixels, width * height
    found = round(width / token) * token, round(height / token) * token
    if found[0] * found[1] > rule.max_pixels:
        shrink = math.sqrt(area / rule.max_pixels)
        found = max(token, _down(width / shrink, token)), max(token, _down(height / shrink, token))
    elif found[0] * found[1] < rule.min_pixels:
        stretch = math.sqrt(rule.min_pixels / area)
        found = _up(width * stretch, token), _up(height * stretch, token)
    if found[0] * found[1] > rule.max_pixels:
        raise ImageError(
            f"a picture of {width}×{height} pixels becomes {found[0]}×{found[1]}, beyond the {rule.max_pixels} pixels "
            "that are taken; cut out what matters, or let min_pixels and max_pixels lie further apart"
        )
    return found


def grid_of(size: Size, rule: AnySize, tower: AnySizeTower) -> Grid:
    """Rows and columns of patches of a picture of that size.

    Raises:
        ImageError: as `resized` has it.
    """
    width, height = resized(size, rule, tower)
    return height // tower.patch_size, width // tower.patch_size


def patch_angles(grid: Grid, tower: AnySizeTower) -> Floats:
    """Angles [patches, head_dim/2]: half of them turn with the patch's row, half with its column."""
    side = tower.token_side
    # [2, tokens down, side, tokens across, side] → [2, patches]
    lies = np.indices(grid).reshape(2, grid[0] // side, side, grid[1] // side, side)
    rows, columns = lies.transpose(0, 1, 3, 2, 4).reshape(2, -1)
    angles = rotary_angles(tower.head_dim // 2, tower.rope_base, max(grid))
    return np.concatenate([angles[rows], angles[columns]], axis=1)


@lru_cache(maxsize=64)
def windows(grid: Grid, tower: WindowTower) -> tuple[Ints, Ints]:
    """Which patch stands at each place of each window [slots], −1 at places beyond the picture's edge, and at which
    place each patch stands [patches].

    Windows lie over the picture row by row; those at its right and lower edge may be smaller.
    """
    joined, across = tower.token_side**2, tower.window // tower.token_side
    rows, columns = (count // tower.token_side for count in grid)
    down, right = -(-rows // across), -(-columns // across)
    tokens = np.full((down * across, right * across), -1, dtype=np.int64)
    tokens[:rows, :columns] = np.arange(rows * columns).reshape(rows, columns)
    tokens = tokens.reshape(down, across, right, across).transpose(0, 2, 1, 3).reshape(-1, 1)
    patches = np.where(tokens < 0, -1, tokens * joined + np.arange(joined)).reshape(-1)
    slots = np.empty(grid[0] * grid[1], dtype=np.int64)
    filled = np.flatnonzero(patches >= 0)
    slots[patches[filled]] = filled
    patches.flags.writeable = slots.flags.writeable = False  # all callers have the same ones
    return patches, slots


def _cut(frames: Sequence[Image], rule: AnySize, tower: AnySizeTower, into: Floats) -> None:
    """The frames of a tile cut into patches [patches, patch_values]; a single one is repeated."""
    side, pixels, token, (width, height) = tower.token_side, tower.patch_size, tower.token_pixels, frames[0].size
    mean, std = np.array(rule.mean, dtype=np.float32), np.array(rule.std, dtype=np.float32)
    down, across = height // token, width // token
    found = into.reshape(down, across, side, side, 3, tower.frames_per_patch, pixels, pixels)
    for at, frame in enumerate(frames):
        own = found if len(frames) == 1 else found[:, :, :, :, :, at : at + 1]
        for first in range(0, down, _ROWS_AT_ONCE):  # strips, so that fp32 pixels are not there twice over
            last = min(first + _ROWS_AT_ONCE, down)
            strip = frame.crop((0, first * token, width, last * token))
            values = (np.asarray(strip, dtype=np.float32) / np.float32(255) - mean) / std
            values = values.reshape(last - first, side, pixels, across, side, pixels, 3)
            own[first:last] = values.transpose(0, 3, 1, 4, 6, 2, 5)[..., None, :, :]


def _down(length: float, token: int) -> int:
    return math.floor(length / token) * token


def _up(length: float, token: int) -> int:
    return math.ceil(length / token) * token
