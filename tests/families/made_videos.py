"""Small videos, made with PyAV: a frame's brightness says which one it is."""

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlm_trt.families.clips import Clip, Pixels


def encoded_video(
    frames: int = 60,
    size: tuple[int, int] = (64, 48),
    rate: int = 10,
    *,
    codec: str = "libx264",
    kind: str = "mp4",
    times_ms: Sequence[int] = (),
    keys_every: int = 12,
    options: dict[str, str] | None = None,
) -> bytes:
    """A video whose frame i is grey, as bright as `brightness(i)`.

    Args:
        frames: how many.
        size: width and height.
        rate: frames a second.
        codec, kind: the encoder's and the container's name.
        times_ms: of each frame, where they are not evenly spaced.
        keys_every: so many frames from one that needs no other to the next.
        options: the container's.
    """
    with (
        TemporaryDirectory() as folder,
        av.open(Path(folder) / "v", "w", format=kind, options=options or {}) as container,
    ):
        stream = container.add_stream(codec, rate=rate)
        stream.bit_rate = 8_000_000
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size = keys_every
        for at in range(frames):
            frame = av.VideoFrame.from_ndarray(grey(size, brightness(at)), format="rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[at], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        container.close()
        return (Path(folder) / "v").read_bytes()


def encoded_sound() -> bytes:
    """An MP4 file without pictures."""
    out = BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def brightness(frame: int) -> int:
    """Of a frame; sixty in a row differ."""
    return frame * 4 % 240


def numbers_of(frames: Pixels) -> list[int]:
    """Which frame of a video each one is, by its brightness."""
    return [round(float(one.mean()) / 4) for one in frames]


def grey(size: tuple[int, int], value: int) -> Pixels:
    return np.full((size[1], size[0], 3), value, dtype=np.uint8)


def turned(video: bytes) -> bytes:
    """The video with a header that has it turned by a quarter, clockwise, as of a telephone that was held upright.

    Source: ISO/IEC 14496-12, 8.3.2: the matrix of a track's header stands 48 bytes behind its name, version 0.
    """
    at = video.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30], dtype=">i4").tobytes()
    return video[:at] + matrix + video[at + len(matrix) :]


def recorded_clip(content: dict[str, Any], size: tuple[int, int] = (8, 8)) -> Clip:
    """The clip of a recorded conversation, of which nothing but times and size is looked at.

    Args:
        content: of the record.
        size: that its frames have been brought to.
    """
    places, total, fps = content["frames_indices"], content["total_num_frames"], content["fps"]
    assert len(places) == content["frames"]
    return Clip(
        frames=np.zeros((len(places), size[1], size[0], 3), np.uint8),
        key=b"recorded",
        seconds=tuple(place / fps for place in places),
        duration=content["duration"],
        rate=len(places) / total * fps,
    )


def stacked_frames(path: Path, count: int) -> list[NDArray[np.uint8]]:
    """A recorded clip: its frames one below the other in one picture."""
    with Image.open(path) as picture:
        return np.split(np.asarray(picture.convert("RGB")), count)
