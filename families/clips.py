"""Videos as a user gives them, and as a model looks at them: a few frames, each with its time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import pairwise
from math import isfinite
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Resampling

from vlm_trt.bundle.errors import VideoError

Size = tuple[int, int]  # width and height, pixels
Pixels = NDArray[np.uint8]


class FrameRule(Protocol):
    """Which frames of a video a model looks at, and in which size. It is frozen, compares, and travels to the process
    that decodes."""

    @property
    def most(self) -> int:
        """How many frames, at most."""

    @property
    def filter(self) -> Resampling: ...

    def chosen(self, frames: int, rate: float) -> Sequence[int]:
        """Which of so many frames, at that rate a second; ascending, each once."""

    def sizes(self, frames: int, size: Size) -> Sequence[Size]:
        """The sizes that each of so many chosen frames is brought to, one after the other.

        Raises:
            ImageError: frames of that size are not taken.
        """


@dataclass(frozen=True)
class Clip:
    """Frames of a video as a model looks at them."""

    frames: Pixels = field(repr=False, compare=False)  # [frames, height, width, 3], RGB, in the size that is looked at
    key: bytes  # what its features, and their positions, are known by
    seconds: tuple[float, ...]  # of each frame, from the video's beginning
    duration: float  # of the video, seconds
    rate: float  # frames a second that are looked at
    name: str = ""

    @property
    def size(self) -> Size:
        """Of its frames as they are looked at."""
        return self.frames.shape[2], self.frames.shape[1]


# What was made of a video, by the rule it was made with: a conversation shows the same video turn by turn.
_Made = dict[FrameRule, Clip]


@dataclass(frozen=True)
class Video:
    """An encoded video (MP4, MOV, WebM, Matroska, AVI). `name` is named in errors and changes no answer."""

    data: bytes = field(repr=False)
    name: str = ""
    made: _Made = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise VideoError(
                "a video is the bytes of an MP4 or WebM file; read the file, as with pathlib.Path(…).read_bytes()"
            )

    @cached_property
    def digest(self) -> bytes:
        """sha256 of the encoded video."""
        return sha256(self.data).digest()


@dataclass(frozen=True)
class Frames:
    """Frames that somebody has taken from a video: encoded pictures of one size, and the time of each in seconds from
    the video's beginning. All of them are looked at."""

    pictures: tuple[bytes, ...] = field(repr=False)
    seconds: tuple[float, ...]
    name: str = ""
    made: _Made = field(default_factory=dict, init=False, repr=False, compare=False)

    def __init__(self, pictures: Sequence[bytes], seconds: Sequence[float], name: str = "") -> None:
        """
        Args:
            pictures: PNG, JPEG, …, in order.
            seconds: of each, ascending, from 0 on.
            name: named in errors.
        Raises:
            VideoError: none, other numbers of both, what is no picture or no time, or times that do not ascend.
        """
        times = tuple(float(one) for one in seconds)
        what = name or "the video"
        if not pictures or not all(isinstance(one, bytes) for one in pictures):
            raise VideoError(f"{what}: frames are the bytes of PNG or JPEG files, one or more; read the files")
        if len(pictures) != len(times):
            raise VideoError(f"{what} has {len(pictures)} frames and {len(times)} times; give each frame its time")
        if not all(isfinite(one) and one >= 0 for one in times) or any(a >= b for a, b in pairwise(times)):
            raise VideoError(f"{what}: times of frames are seconds from 0 on, each later than the one before")
        object.__setattr__(self, "pictures", tuple(pictures))
        object.__setattr__(self, "seconds", times)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "made", {})

    @cached_property
    def digest(self) -> bytes:
        """sha256 of all of its pictures, each by its own."""
        return sha256(b"".join(sha256(one).digest() for one in self.pictures)).digest()
