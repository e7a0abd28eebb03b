"""Videos → frames two a second, of a size that all of them together leave room for, joined by twos."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL.Image import Resampling, fromarray

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.parts import FrameTower, WindowTower
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.families.clips import Clip, Size
from vlm_trt.families.contract import PictureInputs, Watching
from vlm_trt.families.qwen2_vl.pictures import AnySizeTower, resized, tower_inputs

_VIDEO_SHARE = 0.9  # of a prompt's positions, that a video may take
_ABOVE_LEAST = 1.05  # a frame's bound is this far above the least area, however many frames there are


@dataclass(frozen=True)
class EvenFrames:
    """Frames from the first on, evenly spaced, whole patches of them."""

    rule: AnySize
    tower: AnySizeTower
    positions: int  # of a prompt

    filter = Resampling.BICUBIC

    @property
    def most(self) -> int:
        return self.rule.frames.most

    def chosen(self, frames: int, rate: float) -> Sequence[int]:
        """Which of so many frames.

        Source: Qwen2VLVideoProcessor of transformers, which counts in fp32. A rounding error makes it take one frame
        too many, beyond the video's end, of some numbers; here it is not. Where it divides by zero, of a video shorter
        than a patch, here all frames are taken.
        """
        asked, joined = self.rule.frames, self.tower.frames_per_patch
        most = min(asked.most, frames) // joined * joined
        count = int(min(max(frames / rate * asked.rate, asked.least), most) // joined) * joined
        if not count:
            return range(frames)
        places = (np.arange(count) * (frames / count)).astype(np.float32).astype(np.int64)
        return [int(one) for one in places]

    def sizes(self, frames: int, size: Size) -> Sequence[Size]:
        """As pictures are resized, and no larger than their share of nine tenths of the positions.

        Source: Qwen2VLVideoProcessor with `cap_pixels_per_frame`, after qwen-vl-utils. Both take the positions for
        128,000 whatever there are.
        """
        room = int(self.positions * self.tower.token_pixels**2 * _VIDEO_SHARE)
        share = room * self.tower.frames_per_patch // frames
        most = max(min(self.rule.max_pixels, share), int(self.rule.min_pixels * _ABOVE_LEAST))
        return [resized(size, replace(self.rule, max_pixels=min(most, self.rule.max_pixels)), self.tower)]


def frame_rule(model: ModelConfig, positions: int) -> EvenFrames:
    """The rule for frames of a prompt of so many positions."""
    assert isinstance(model.pictures, AnySize) and isinstance(model.vision, FrameTower | WindowTower)
    return EvenFrames(model.pictures, model.vision, positions)


def tiles_of(clip: Clip, tower: AnySizeTower) -> list[list[int]]:
    """Which frames are joined to a tile, the last one repeated where one is missing."""
    last, joined = len(clip.frames) - 1, tower.frames_per_patch
    return [[min(first + at, last) for at in range(joined)] for first in range(0, last + 1, joined)]


def time_step(clip: Clip, rule: AnySize, tower: AnySizeTower) -> float:
    """Positions from one tile to the next.

    Source: Qwen2_5_VLProcessor and `get_rope_index` of transformers, which multiply in fp32.
    """
    if rule.positions_per_second is None:
        return 1.0
    seconds = np.float32(tower.frames_per_patch / clip.rate)
    return float(np.float32(rule.positions_per_second) * seconds)


def preprocess(clip: Clip, model: ModelConfig) -> PictureInputs:
    """What the tower is given of a clip, as of pictures, a tile for the frames that are joined.

    Source: Qwen2VLVideoProcessor of transformers, its resizing done as Pillow does it.
    """
    rule, tower = model.pictures, model.vision
    assert isinstance(rule, AnySize) and isinstance(tower, FrameTower | WindowTower)
    frames = [fromarray(one) for one in clip.frames]
    return tower_inputs([[frames[at] for at in tile] for tile in tiles_of(clip, tower)], rule, tower)


WATCHING = Watching(frame_rule, preprocess)
