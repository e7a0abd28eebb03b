"""Large pictures → tiles: squares of the vision tower's size, row by row, and the whole picture as the last of them."""

from dataclasses import dataclass
from math import ceil

from PIL.Image import Image, Resampling

from vlm_trt.bundle.picture_rules import Split
from vlm_trt.families.messages import Detail

Size = tuple[int, int]  # width and height, pixels


@dataclass(frozen=True)
class Grid:
    """How a picture is cut; 0 by 0 where there is the whole of it alone."""

    rows: int
    columns: int

    @property
    def tiles(self) -> int:
        """Those of the grid, and the whole picture."""
        return self.rows * self.columns + 1


def grid_of(size: Size, rule: Split, side: int, detail: Detail) -> Grid:
    """The grid of a picture of that size.

    Args:
        size: of the picture.
        rule: of the checkpoint.
        side: of a tile.
        detail: what a request says about it.
    """
    if not cuts(rule, detail):
        return Grid(0, 0)
    width, height = _in_tiles(with_long_side(size, rule.long_side), side)
    return Grid(0, 0) if max(width, height) <= side else Grid(height // side, width // side)


def tiles_of(picture: Image, rule: Split, side: int, detail: Detail) -> list[Image]:
    """The tiles of an RGB picture. It is resized up to three times, one after the other, as the original does it.

    Args:
        picture: of any size.
        rule: of the checkpoint.
        side: of a tile.
        detail: what a request says about it.
    Source: SmolVLMImageProcessor of transformers, Pillow backend.
    """
    scaled = picture.resize(with_long_side(picture.size, rule.long_side), Resampling.LANCZOS)
    found: list[Image] = []
    if cuts(rule, detail):
        grid = grid_of(picture.size, rule, side, detail)
        scaled = scaled.resize(_in_tiles(scaled.size, side), Resampling.LANCZOS)
        corners = [(side * column, side * row) for row in range(grid.rows) for column in range(grid.columns)]
        found = [scaled.crop((left, top, left + side, top + side)) for left, top in corners]
    return [*found, scaled.resize((side, side), Resampling.LANCZOS)]


def cuts(rule: Split, detail: Detail) -> bool:
    """Whether a picture is cut."""
    return rule.cuts if detail is Detail.AUTO else detail is Detail.HIGH


def with_long_side(size: Size, long_side: int) -> Size:
    """The long side as it is asked for, the other one rounded down and then up to an even number."""
    width, height = size
    aspect = width / height
    short = max(int(long_side / aspect if width >= height else long_side * aspect), 0)
    short = max(short + short % 2, 1)
    return (long_side, short) if width >= height else (short, long_side)


def _in_tiles(size: Size, side: int) -> Size:
    """Both sides as multiples of a tile's, at least: first the long one, the other one as the aspect has it then."""
    width, height = size
    aspect = width / height
    long = ceil(max(size) / side) * side
    short = int(long / aspect if width >= height else long * aspect)
    short = ceil(short / side) * side
    return (long, short) if width >= height else (short, long)
