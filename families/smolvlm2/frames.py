"""Videos → one frame a second or fewer, each a tile, and how the prompt speaks of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from PIL.Image import Resampling, fromarray

from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.picture_rules import FrameSampling, Split
from vlm_trt.families.clips import Clip, Size
from vlm_trt.families.contract import PictureInputs, Watching
from vlm_trt.families.pixels import square_values
from vlm_trt.families.splitting import with_long_side

_SKIPPED_S = 1  # at both ends of a long video
_SMALL = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


@dataclass(frozen=True)
class SpreadFrames:
    """Frames from one end to the other, as many as there are seconds, up to a bound."""

    frames: FrameSampling
    frame_side: int  # the long side, pixels, before a frame becomes a square
    side: int  # of a tile

    filter = Resampling.LANCZOS

    @property
    def most(self) -> int:
        return self.frames.most

    def chosen(self, frames: int, rate: float) -> Sequence[int]:
        """Which of so many frames.

        Source: SmolVLMVideoProcessor of transformers; a second at each end is left out of a video with more
        seconds than frames that are looked at.
        """
        seconds = frames / rate
        count = max(min(round(self.frames.rate * seconds), self.frames.most), 1)
        first, last = 0, frames - 1
        if seconds - 2 * _SKIPPED_S > self.frames.most * self.frames.rate:
            first, last = int(_SKIPPED_S * rate), min(int(frames - _SKIPPED_S * rate), last)
            if first >= last:
                first, last = 0, frames - 1
        return [int(one) for one in np.unique(np.linspace(first, last, count, dtype=int))]

    def sizes(self, frames: int, size: Size) -> Sequence[Size]:
        """The long side first, then a square.

        Source: SmolVLMVideoProcessor of transformers, with the `video_size` of its file.
        """
        return [with_long_side(size, self.frame_side), (self.side, self.side)]


def frame_rule(model: ModelConfig, positions: int) -> SpreadFrames:
    """The rule for frames, whatever room a prompt has."""
    assert isinstance(model.pictures, Split)
    return SpreadFrames(model.pictures.frames, model.pictures.frame_side, model.square.image_size)


def preprocess(clip: Clip, model: ModelConfig) -> PictureInputs:
    """`pixel_values` [frames, 3, side, side] fp32."""
    return square_values([fromarray(one) for one in clip.frames], model.square_rule)


WATCHING = Watching(frame_rule, preprocess)


def introduction(clip: Clip) -> str:
    """The sentence before a video's frames."""
    length = timedelta(seconds=int(clip.duration))
    return (
        f"You are provided the following series of {in_words(len(clip.seconds))} frames from a {length} [H:MM:SS] "
        "video.\n"
    )


def clock_time(second: float) -> str:
    """Minutes and whole seconds: 01:05. There are no hours; minutes go on."""
    return f"{int(second // 60):02d}:{int(second % 60):02d}"


def in_words(number: int) -> str:
    """A number from 0 to 999 in English: forty-two, one hundred and one.

    Source: num2words, which the original takes.
    """
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return f"{tens}-{_SMALL[number % 10]}" if number % 10 else tens
    rest = f" and {in_words(number % 100)}" if number % 100 else ""
    return f"{_SMALL[number // 100]} hundred{rest}"
