"""The rules by which pictures become what a tower takes: a few frozen types, told apart by `type` as the parts are."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from vlm_trt.bundle.fields import Within
from vlm_trt.bundle.parts import GRID, SIDE

PIXELS = Within(1, 1 << 30)
CHANNEL_MEAN = Within(-16.0, 16.0)
CHANNEL_STD = Within(1e-4, 16.0)
FRAME_RATE = Within(0.01, 240.0)
FRAME_COUNT = Within(1, 999)
POSITION_RATE = Within(0.01, 1000.0)
CROPS = Within(1, 1_024)


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """How many frames of a video are looked at."""

    rate: Annotated[float, FRAME_RATE]  # a second
    least: Annotated[int, FRAME_COUNT]  # of a video that has as many
    most: Annotated[int, FRAME_COUNT]


@dataclass(frozen=True, kw_only=True)
class _PictureRule:
    """Colours v of 0…255 become (v / 255 − mean) / std."""

    mean: tuple[
        Annotated[float, CHANNEL_MEAN],
        Annotated[float, CHANNEL_MEAN],
        Annotated[float, CHANNEL_MEAN],
    ]
    std: tuple[
        Annotated[float, CHANNEL_STD],
        Annotated[float, CHANNEL_STD],
        Annotated[float, CHANNEL_STD],
    ]

    def most_tiles(self, side: int) -> int:
        """How many squares of that side a picture becomes at most."""
        return 1


@dataclass(frozen=True, kw_only=True)
class Squash(_PictureRule):
    """The whole picture, its aspect not kept; bicubic."""

    type: Literal["squash"] = "squash"


@dataclass(frozen=True, kw_only=True)
class CentreCrop(_PictureRule):
    """The short side is resized to `short_side`, bicubic; what lies beyond the square in the middle is cut off."""

    type: Literal["centre_crop"] = "centre_crop"
    short_side: Annotated[int, SIDE]


@dataclass(frozen=True, kw_only=True)
class PadSquare(_PictureRule):
    """The whole picture in the middle of a square of the mean colour; bicubic."""

    type: Literal["pad_square"] = "pad_square"


@dataclass(frozen=True, kw_only=True)
class Split(_PictureRule):
    """The long side is resized to `long_side`, with Lanczos, and the picture cut into squares, the whole of it last."""

    type: Literal["split"] = "split"
    long_side: Annotated[int, SIDE]
    cuts: bool  # unless a request says otherwise; if not, there is the whole picture alone
    frames: FrameSampling
    frame_side: Annotated[int, SIDE]  # of a video's frames, the long side before they become squares; never cut

    def most_tiles(self, side: int) -> int:
        across = -(-self.long_side // side)
        return across**2 + 1 if across > 1 else 1


@dataclass(frozen=True, kw_only=True)
class AnySize(_PictureRule):
    """Both sides rounded to whole tokens, the area kept within bounds, the aspect nearly; bicubic."""

    type: Literal["any_size"] = "any_size"
    min_pixels: Annotated[int, PIXELS]
    max_pixels: Annotated[int, PIXELS]
    frames: FrameSampling  # each of a video's within the same bounds
    # How many positions a second of a video takes; None: what becomes a token together takes one.
    positions_per_second: Annotated[float, POSITION_RATE] | None

    def narrowed(self, least: int | None, most: int | None) -> "AnySize":
        """The rule within those bounds too."""
        most = self.max_pixels if most is None else min(most, self.max_pixels)
        least = self.min_pixels if least is None else max(least, self.min_pixels)
        return replace(self, min_pixels=min(least, most), max_pixels=most)


@dataclass(frozen=True, kw_only=True)
class Crops(_PictureRule):
    """The whole picture as a square, and the picture once more in overlapping squares, all of them seen together;
    Lanczos."""

    type: Literal["crops"] = "crops"
    most_crops: Annotated[int, CROPS]  # overlapping ones
    margin: Annotated[int, GRID]  # patches at each side of a crop that its neighbour has too


SquareRule = Squash | CentreCrop | PadSquare | Split
PictureRule = SquareRule | AnySize | Crops
