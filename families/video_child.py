"""Decodes one video from standard input, in bounded memory and time: what `videos.py` starts.

python -m vlm_trt.families.video_child mov RULE < clip.mp4

Standard output gets a line of JSON, then the pixels of the chosen frames, RGB, one after the other.
"""

import json
import pickle
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from vlm_trt.bundle.errors import VideoError, VlmTrtError
from vlm_trt.families.clips import FrameRule, Pixels
from vlm_trt.families.video_limits import (
    LIMIT_S,
    MAX_CLIP_BYTES,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_RATE,
    MAX_SECONDS,
    MEMORY_BYTES,
    SAID,
)

_DEFAULT_RATE = 24.0  # of a file that gives neither rate nor times, as the originals take it
_DAMAGED = "is damaged or truncated ({}); get it again"


@dataclass(frozen=True)
class Index:
    """Every frame of a video, from its packets alone."""

    times: tuple[int, ...]  # of each in the order it is shown, in the stream's units; none, where the file has none
    keys: tuple[tuple[int, int], ...]  # shown and decoded when: frames that need no other one, ascending
    frames: int
    rate: float  # on average


def main() -> None:
    kind, rule = sys.argv[1], pickle.loads(bytes.fromhex(sys.argv[2]))
    _bound()
    try:
        with av.open(sys.stdin.buffer, "r", format=kind, metadata_errors="replace") as container:
            _write(container, rule, sys.stdout.buffer)
    except VideoError as error:
        _end(str(error))
    except VlmTrtError as error:  # the rule's, of a picture of that size
        _end(f"cannot be looked at: {error}")
    except MemoryError:
        _end(f"needs more than {MEMORY_BYTES >> 20} MiB to be decoded; scale it down")
    except (av.FFmpegError, OSError, ValueError) as error:
        _end(_DAMAGED.format(getattr(error, "strerror", None) or error))


def _bound() -> None:
    """Memory, processor time, and what can be written: bounds that hold whatever the file makes its decoder do."""
    own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for kind, most in (
        (resource.RLIMIT_AS, own + MEMORY_BYTES),
        (resource.RLIMIT_CPU, 4 * LIMIT_S),
        (resource.RLIMIT_FSIZE, MAX_CLIP_BYTES + (1 << 20)),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError):  # a lower one holds already
            resource.setrlimit(kind, (most, most))


def _end(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    sys.exit(SAID)


def _write(container: InputContainer, rule: FrameRule, out: BinaryIO) -> None:
    if not container.streams.video:
        raise VideoError("has no video stream; give a file with moving pictures")
    stream = container.streams.video[0]
    _require_size(stream.codec_context.width, stream.codec_context.height)
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    stream.codec_context.thread_count = 2
    index = index_of(container, stream)
    places = list(rule.chosen(index.frames, index.rate))
    sizes: Sequence[tuple[int, int]] = ()
    for frame in _chosen(container, stream, index, places):
        pixels = _upright(frame)
        if not sizes:
            sizes = rule.sizes(len(places), (pixels.shape[1], pixels.shape[0]))
            out.write(_heading(index, places, sizes[-1]))
        picture = Image.fromarray(pixels)
        for one in sizes:
            picture = picture.resize(one, rule.filter)
        out.write(picture.tobytes())
    out.flush()


def _heading(index: Index, places: Sequence[int], size: tuple[int, int]) -> bytes:
    if len(places) * size[0] * size[1] * 3 > MAX_CLIP_BYTES:
        raise VideoError(
            f"has {len(places)} frames to look at of {size[0]}×{size[1]} pixels, more than {MAX_CLIP_BYTES >> 20} MiB; "
            "shorten it or scale it down"
        )
    about = {
        "size": size,
        "seconds": [place / index.rate for place in places],
        "duration": index.frames / index.rate,
        "rate": len(places) / index.frames * index.rate,
    }
    return json.dumps(about).encode() + b"\n"


def index_of(container: InputContainer, stream: VideoStream) -> Index:
    """Where its frames are. Nothing is decoded, and nothing that the header claims of them is believed.

    Raises:
        VideoError: there are none, fewer than the header says, too many, or they take too long.
    """
    times: list[int | None] = []
    keys: list[tuple[int, int]] = []
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        times.append(packet.pts)
        if packet.is_keyframe and packet.pts is not None:
            keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        if len(times) > MAX_FRAMES:
            raise VideoError(f"has more than {MAX_FRAMES:,} frames; cut out what matters")
    if not times:
        raise VideoError("holds no frames; give a file with moving pictures")
    if 0 < len(times) < min(stream.frames, MAX_FRAMES) - 1:
        raise VideoError(
            f"is damaged or truncated (it ends after {len(times)} of {stream.frames} frames); get it again"
        )
    known = sorted(one for one in times if one is not None)
    shown = tuple(known) if len(set(known)) == len(times) else ()
    rate = _rate(stream, shown)
    seconds = len(times) / rate
    if shown and stream.time_base is not None:
        seconds = max(seconds, float((shown[-1] - shown[0]) * stream.time_base))
    if seconds > MAX_SECONDS:
        raise VideoError(
            f"lasts {seconds / 3600:.1f} hours; at most {MAX_SECONDS // 3600} are read, cut out what matters"
        )
    return Index(shown, tuple(sorted(keys)), len(times), rate)


def _rate(stream: VideoStream, shown: Sequence[int]) -> float:
    """Frames a second: the file's own average, unless its frames' times say quite another one."""
    claimed, measured = float(stream.average_rate or 0), 0.0
    if len(shown) > 1 and stream.time_base is not None:
        measured = min((len(shown) - 1) / float((shown[-1] - shown[0]) * stream.time_base), MAX_RATE)
    if not 1 / MAX_SECONDS < claimed <= MAX_RATE or (measured and not 0.8 < claimed / measured < 1.25):
        return measured or _DEFAULT_RATE
    return claimed


def _chosen(
    container: InputContainer, stream: VideoStream, index: Index, places: Sequence[int]
) -> Iterator[VideoFrame]:
    """The frames at those places. Where the file has times, what lies between is passed over from key to key.

    Raises:
        VideoError: one of them is not there.
    """
    container.seek(0 if not index.keys else index.keys[0][1], stream=stream)
    decoded = container.decode(stream)
    counted, at = -1, None  # the place of the last frame, by its number and by its time
    for place in places:
        wanted = index.times[place] if index.times else None
        if wanted is not None:
            key = max((one for one in index.keys if one[0] <= wanted), default=None)
            if key is not None and at is not None and key[0] > at:
                container.seek(key[1], stream=stream)
                decoded = container.decode(stream)
        for frame in decoded:
            counted, at = counted + 1, frame.pts
            if counted == place if wanted is None else at is not None and at >= wanted:
                break
        else:
            raise VideoError(_DAMAGED.format(f"frame {place + 1} of {index.frames} cannot be decoded"))
        if wanted is not None and at != wanted:
            raise VideoError(_DAMAGED.format(f"frame {place + 1} of {index.frames} cannot be decoded"))
        _require_size(frame.width, frame.height)
        yield frame


def _upright(frame: VideoFrame) -> Pixels:
    """[height, width, 3], turned by the quarters that the file asks for."""
    pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


def _require_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"is {width}×{height}; at most {MAX_PIXELS // 1_000_000} megapixels a frame are decoded, scale it down, as "
            "with: ffmpeg -i FILE -vf scale=1280:-2 clip.mp4"
        )


if __name__ == "__main__":
    main()
