"""Videos from anywhere: which frames are looked at, and what is refused, in bounded memory and time."""

import os
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.families.made_videos import encoded_sound, encoded_video, grey, numbers_of, turned
from vlm_trt.bundle.errors import ImageError, UsageError, VideoError
from vlm_trt.bundle.picture_rules import FrameSampling
from vlm_trt.families import videos
from vlm_trt.families.clips import Frames, Video
from vlm_trt.families.smolvlm2.frames import SpreadFrames
from vlm_trt.families.videos import clip_of_frames, clip_of_video, read_video

RULE = SpreadFrames(FrameSampling(rate=1.0, least=1, most=64), 64, 64)


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encoded_video()


def png(size: tuple[int, int], value: int = 7) -> bytes:
    out = BytesIO()
    Pillow.fromarray(grey(size, value)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("codec", "kind"),
    [("libx264", "mp4"), ("libx264", "mov"), ("libx265", "mp4"), ("libvpx-vp9", "webm"), ("libx264", "matroska"),
     ("mpeg4", "avi")],
)  # fmt: skip
def test_frames_are_those_of_their_numbers(codec: str, kind: str) -> None:
    """Frames that stand before those they were made from are in order, whichever keys lie between."""
    found = clip_of_video(Video(encoded_video(codec=codec, kind=kind, keys_every=7)), RULE)
    assert numbers_of(found.frames) == [0, 11, 23, 35, 47, 59]
    assert found.seconds == (0.0, 1.1, 2.3, 3.5, 4.7, 5.9)
    assert (found.duration, found.rate, found.size) == (6.0, 1.0, (64, 64))


def test_a_variable_rate_counts_as_its_average() -> None:
    """Also where the header has another one: 30 frames take 3 seconds, 30 more take 9."""
    times = [at * 100 if at < 30 else 3000 + (at - 30) * 300 for at in range(60)]
    found = clip_of_video(Video(encoded_video(times_ms=times, kind="matroska", rate=30)), RULE)
    assert numbers_of(found.frames) == [0, 5, 10, 16, 21, 26, 32, 37, 42, 48, 53, 59]
    assert found.duration == pytest.approx(60 / 59 * 11.7) and found.seconds[-1] == pytest.approx(11.7)


def test_a_turned_video_stands_upright(clip: bytes) -> None:
    rule = SpreadFrames(FrameSampling(rate=1.0, least=1, most=1), 64, 64)
    data = encoded_video(frames=1, size=(64, 32))
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32] = 255  # the left half is bright; turned clockwise it is the upper one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.families.made_videos.grey", lambda size, value: halves)
        data = encoded_video(frames=1, size=(64, 32))
    lying, standing = (clip_of_video(Video(one), rule).frames[0] for one in (data, turned(data)))
    assert lying[:, :28].mean() > 200 > 50 > lying[:, 36:].mean()
    assert standing[:28].mean() > 200 > 50 > standing[36:].mean()


def test_two_hours_are_looked_at_from_key_to_key() -> None:
    times = [at * 60_000 for at in range(120)]
    found = clip_of_video(Video(encoded_video(120, times_ms=times)), RULE)
    assert len(found.seconds) == 64 and found.duration == pytest.approx(7140, abs=60)
    assert numbers_of(found.frames)[:4] == [0, 1, 3, 5]


def header_says(clip: bytes, width: int, height: int) -> bytes:
    """Sides of the sample description, where a demuxer reads them."""
    at = clip.index(b"avc1") + 4 + 24
    return clip[:at] + struct.pack(">HH", width, height) + clip[at + 4 :]


def too_long(_: bytes) -> bytes:
    return encoded_video(2, times_ms=[0, 5 * 3_600_000], kind="matroska")


BAD: list[tuple[Callable[[bytes], bytes], str]] = [
    (lambda clip: b"", "is no video this version reads \\(MP4, MOV, WebM, Matroska, AVI\\); convert it"),
    (lambda clip: b"nothing at all, whatever its name", "is no video this version reads"),
    (lambda clip: png((8, 8)), "is no video this version reads"),
    (lambda clip: b"#EXTM3U\n/etc/passwd\n", "is no video this version reads"),
    (lambda clip: clip[:64], "is damaged or truncated"),
    (lambda clip: clip[: len(clip) // 2], "is damaged or truncated"),
    (lambda clip: encoded_video(options={"movflags": "faststart"})[:-900], "is damaged or truncated"),
    (lambda clip: encoded_sound(), "has no video stream; give a file with moving pictures"),
    (too_long, "lasts 10.0 hours; at most 3 are read, cut out what matters"),
]


@pytest.mark.parametrize(("made", "sentence"), BAD)
def test_bad_files_are_one_sentence(clip: bytes, made: Callable[[bytes], bytes], sentence: str) -> None:
    with pytest.raises(VideoError, match=f"^holiday.mp4 {sentence}") as refused:
        clip_of_video(Video(made(clip), "holiday.mp4"), RULE)
    assert "\n" not in str(refused.value) and isinstance(refused.value, UsageError)
    assert refused.value.exit_code == 2


def test_a_large_picture_is_refused_before_it_is_decoded() -> None:
    data = encoded_video(2, (7680, 4320), codec="mpeg4", kind="avi")
    with pytest.raises(VideoError, match=r"is 7680×4320; at most 9 megapixels a frame are decoded, scale it down"):
        clip_of_video(Video(data), RULE)


def test_an_absurd_header_costs_nothing(clip: bytes) -> None:
    """It is refused, or the stream's own size is what counts."""
    try:
        found = clip_of_video(Video(header_says(clip, 65535, 65535), "odd.mp4"), RULE)
    except VideoError as error:
        assert str(error).startswith("odd.mp4 ")
    else:
        assert numbers_of(found.frames) == [0, 11, 23, 35, 47, 59]


def test_damage_anywhere_is_a_sentence_or_frames(clip: bytes) -> None:
    random = np.random.default_rng(5)
    for _ in range(12):
        data = bytearray(clip)
        for at in random.integers(0, len(data), 40):
            data[at] = random.integers(0, 256)
        try:
            assert clip_of_video(Video(bytes(data)), RULE).frames.size
        except VideoError as error:
            assert str(error).startswith("the video ")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("LIMIT_S", 0.01, "takes more than 0.01 s to decode; shorten it or scale it down"),
        ("MAX_BYTES", 100, "has more than 0 MiB; shorten the video or scale it down"),
    ],
)
def test_limits_hold(clip: bytes, name: str, value: float, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, name, value)
    with pytest.raises(VideoError, match=sentence):
        clip_of_video(Video(clip), RULE)


def test_the_decoders_memory_is_bounded(clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that wants more than it may have, or crashes, or writes without end, is a sentence."""
    for body, sentence in (
        ("bytearray(4 << 30)", "needs more than 1536 MiB to be decoded; scale it down"),
        ("import ctypes; ctypes.string_at(0)", r"crashes its decoder \(SIGSEGV\), so it is damaged"),
        ("[sys.stdout.buffer.write(bytes(1 << 26)) for _ in range(32)]", "is damaged or truncated|could not|crashes"),
    ):
        child = "import vlm_trt.families.video_child as child, sys\n"
        child += f"def write(*_):\n    {body}\nchild._write = write\nchild.main()\n"
        (tmp_path / "child.py").write_text(child)
        monkeypatch.setattr(videos, "CHILD", (str(tmp_path / "child.py"),))
        with pytest.raises(VideoError, match=sentence):
            clip_of_video(Video(clip), RULE)


def test_without_pyav_the_extra_is_named(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    with pytest.raises(VideoError, match=r"a.mp4 cannot be decoded: PyAV is missing; install it with: pip install"):
        clip_of_video(Video(clip, "a.mp4"), RULE)


def test_files_that_cannot_be_read(tmp_path: Path, clip: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(clip)
    assert read_video(tmp_path / "a.mp4") == clip
    with pytest.raises(VideoError, match=r"b.mp4 cannot be read: No such file or directory; give an MP4 or WebM file"):
        read_video(tmp_path / "b.mp4")
    os.truncate(tmp_path / "a.mp4", videos.MAX_BYTES + 1)
    with pytest.raises(VideoError, match=r"a.mp4 has more than 512 MiB; shorten the video or scale it down"):
        read_video(tmp_path / "a.mp4")


def test_frames_with_times() -> None:
    given = Frames([png((80, 60), value) for value in (10, 20, 30)], (0, 0.5, 1))
    found = clip_of_frames(given, RULE)
    assert found.frames.shape == (3, 64, 64, 3) and [int(one.mean()) for one in found.frames] == [10, 20, 30]
    assert (found.seconds, found.duration, found.rate) == ((0.0, 0.5, 1.0), 1.0, 2.0)
    later = clip_of_frames(Frames(given.pictures, (0, 0.5, 2)), RULE)
    assert later.key != found.key and len({found.key, later.key, given.digest}) == 3
    assert clip_of_frames(Frames([png((9, 9))], [3.0]), RULE).rate == 1.0


@pytest.mark.parametrize(
    ("pictures", "seconds", "sentence"),
    [
        ([], [], "the video: frames are the bytes of PNG or JPEG files, one or more"),
        (["a.png"], [0], "the video: frames are the bytes of PNG or JPEG files, one or more"),
        ([b"a", b"b"], [0], "the video has 2 frames and 1 times; give each frame its time"),
        ([b"a", b"b"], [1, 1], "times of frames are seconds from 0 on, each later than the one before"),
        ([b"a"], [float("nan")], "times of frames are seconds from 0 on"),
        ([b"a"], [-1], "times of frames are seconds from 0 on"),
    ],
)
def test_frames_that_are_none(pictures: list[bytes], seconds: list[float], sentence: str) -> None:
    with pytest.raises(VideoError, match=sentence):
        Frames(pictures, seconds)


def test_frames_that_cannot_be_used() -> None:
    with pytest.raises(VideoError, match="has frames of 9×9 and of 8×9; make them of one size"):
        clip_of_frames(Frames([png((9, 9)), png((8, 9))], [0, 1]), RULE)
    with pytest.raises(VideoError, match="has 65 frames, and this model looks at 64 at most; leave some out"):
        clip_of_frames(Frames([png((9, 9))] * 65, range(65)), RULE)
    with pytest.raises(ImageError, match="frame 2 of trip is no picture this version reads"):
        clip_of_frames(Frames([png((9, 9)), b"x"], [0, 1], "trip"), RULE)


def test_a_video_is_bytes() -> None:
    with pytest.raises(VideoError, match="a video is the bytes of an MP4 or WebM file; read the file"):
        Video("clip.mp4")  # type: ignore[arg-type]
