"""Encoded videos and lists of frames → clips, with everything dangerous bounded.

A video is decoded in a process of its own (`video_child.py`): a damaged one may crash its decoder, hang it, or make it
ask for any memory. Only chosen frames leave it, in the size that the model looks at.
"""

import json
import pickle
import signal
import subprocess
import sys
from hashlib import sha256
from importlib.util import find_spec
from os import environ
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import BinaryIO

import numpy as np

from vlm_trt.bundle.children import deaf_to_interrupts
from vlm_trt.bundle.errors import StorageError, VideoError
from vlm_trt.bundle.installation import how_to_install
from vlm_trt.bundle.reading import read_bytes, require_regular
from vlm_trt.families.clips import Clip, FrameRule, Frames, Pixels, Video
from vlm_trt.families.images import decode_image
from vlm_trt.families.video_limits import LIMIT_S, MAX_BYTES, MAX_CLIP_BYTES, MEMORY_BYTES, SAID

FORMATS = ("MP4", "MOV", "WebM", "Matroska", "AVI")
CHILD = ("-m", "vlm_trt.families.video_child")
_SAID_BYTES = 4096  # of a sentence
# One decoding at a time bounds the memory of all of them.
_DECODING = Lock()


def read_video(path: Path) -> bytes:
    """The encoded video in that file, not yet looked at.

    Raises:
        VideoError: no file, one that cannot be read, or one larger than MAX_BYTES.
    """
    try:
        if require_regular(path).st_size > MAX_BYTES:
            raise _too_large(str(path))
        return read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise VideoError(f"{path} cannot be read: {error.strerror}; give an MP4 or WebM file") from None


def clip_of_video(video: Video, rule: FrameRule) -> Clip:
    """The frames of a video that a rule chooses.

    A frame is known by its number, and its time is that number at the file's average rate, as in the originals; a video
    whose rate varies counts as one of its average. It is turned as its file says, so that it stands upright.

    Args:
        video: to be looked at.
        rule: which frames, and how large.
    Raises:
        VideoError: it is none that is read, damaged, truncated, too long, too large or too slow to decode, or PyAV is
            missing.
    """
    what, kind = video.name or "the video", require_decodable(video)
    with _DECODING, TemporaryFile() as given, TemporaryFile() as made, TemporaryFile() as said:
        try:
            given.write(video.data)
            given.seek(0)
        except OSError as error:
            raise StorageError(
                f"{what} cannot be handed to its decoder: {error.strerror}; free some space for temporary files"
            ) from None
        _decode(what, [kind, pickle.dumps(rule).hex()], given, made, said)
        made.seek(0)
        about = json.loads(made.readline())
        frames = _frames(made, len(about["seconds"]), about["size"], what)
    seconds = tuple(map(float, about["seconds"]))
    return Clip(frames, _key(video.digest, frames, seconds), seconds, about["duration"], about["rate"], video.name)


def require_decodable(video: Video) -> str:
    """The demuxer that takes it, by its beginning; nothing is decoded.

    Raises:
        VideoError: none does, it is too large, or PyAV is missing.
    """
    what, kind = video.name or "the video", _container(video.data)
    if len(video.data) > MAX_BYTES:
        raise _too_large(what)
    if kind is None:
        raise VideoError(
            f"{what} is no video this version reads ({', '.join(FORMATS)}); convert it: ffmpeg -i FILE clip.mp4"
        )
    if find_spec("av") is None:
        raise VideoError(f"{what} cannot be decoded: PyAV is missing; install it with: {how_to_install('video')}")
    return kind


def clip_of_frames(given: Frames, rule: FrameRule) -> Clip:
    """All of the frames given, as the rule has them.

    Args:
        given: pictures and their times.
        rule: how large, and how many at most.
    Raises:
        VideoError: too many, or of different sizes. ImageError: one is no picture.
    """
    what, count = given.name or "the video", len(given.pictures)
    if count > rule.most:
        raise VideoError(f"{what} has {count} frames, and this model looks at {rule.most} at most; leave some out")
    frames: Pixels | None = None
    size = None
    for at, data in enumerate(given.pictures):
        picture = decode_image(data, f"frame {at + 1} of {what}")
        size = size or picture.size
        if picture.size != size:
            raise VideoError(
                f"{what} has frames of {_sides(size)} and of {_sides(picture.size)}; make them of one size"
            )
        for one in rule.sizes(count, size):
            picture = picture.resize(one, rule.filter)
        if frames is None:
            frames = np.empty((count, picture.height, picture.width, 3), dtype=np.uint8)
        frames[at] = np.asarray(picture)
    assert frames is not None, "there is one at least"
    first, last = given.seconds[0], given.seconds[-1]
    rate = (count - 1) / (last - first) if count > 1 else 1.0
    return Clip(frames, _key(given.digest, frames, given.seconds), given.seconds, last, rate, given.name)


def _decode(what: str, arguments: list[str], given: BinaryIO, made: BinaryIO, said: BinaryIO) -> None:
    """Runs the decoder's process to its end, or to the end of its time.

    Raises:
        VideoError: it said why it could not, crashed, or took too long.
    """
    command = [sys.executable, "-P", *CHILD, *arguments]
    calm = {**environ, "OPENBLAS_NUM_THREADS": "1"}  # threads of numpy's would take address space
    with deaf_to_interrupts():
        process = subprocess.Popen(command, stdin=given, stdout=made, stderr=said, env=calm)
    try:
        code = process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        raise VideoError(f"{what} takes more than {LIMIT_S} s to decode; shorten it or scale it down") from None
    finally:
        process.kill()
        process.wait()
    if code == 0:
        return
    said.seek(max(0, said.seek(0, 2) - _SAID_BYTES))
    lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["it gave no reason"]
    if code == SAID:
        raise VideoError(f"{what} {lines[-1]}")
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        raise VideoError(f"{what} takes more than its time or memory to decode; shorten it or scale it down")
    if code < 0:
        name = signal.Signals(-code).name
        raise VideoError(f"{what} crashes its decoder ({name}), so it is damaged; get it again or convert it")
    raise VideoError(
        f"{what} could not be decoded ({lines[-1]}), within {MEMORY_BYTES >> 20} MiB; convert it or scale it down"
    )


def _frames(made: BinaryIO, count: int, size: tuple[int, int], what: str) -> Pixels:
    width, height = size
    expected = count * height * width * 3
    assert 0 < expected <= MAX_CLIP_BYTES
    data = made.read(expected)
    if len(data) != expected:
        raise VideoError(f"{what} ended while it was decoded; get it again or convert it")
    return np.frombuffer(data, dtype=np.uint8).reshape(count, height, width, 3)


def _key(digest: bytes, frames: Pixels, seconds: tuple[float, ...]) -> bytes:
    """What a clip is known by: the video, and how it is looked at; its times decide the positions of its features."""
    looked_at = repr((frames.shape, seconds)).encode()
    return digest + b"clip" + sha256(looked_at).digest()


def _container(data: bytes) -> str | None:
    """The demuxer's name, by how the file begins: only these few are ever opened, none that reads further files."""
    if data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"
    if data.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "avi" if data.startswith(b"RIFF") and data[8:12] == b"AVI " else None


def _too_large(what: str) -> VideoError:
    return VideoError(f"{what} has more than {MAX_BYTES >> 20} MiB; shorten the video or scale it down")


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"
