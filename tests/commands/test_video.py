"""`--video` on golden checkpoints of the families that take one, and the sentences where that fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.runs import vlm_trt
from tests.families.made_videos import encoded_video
from vlm_trt.families import videos

QUICK = ("--backend", "cpu", "--greedy", "--max-new-tokens", 4, "--unverified")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encoded_video(30, (32, 24)))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (24, 24)).save(path)
    return path


@pytest.mark.parametrize("name", ["smolvlm2", "qwen2_vl", "qwen2_5_vl"])
def test_a_clip_is_answered(name: str, clip: Path, exported: Callable[..., Path]) -> None:
    done = vlm_trt("generate", exported(name), "What happens?", "--video", clip, "--json", *QUICK)
    assert done.exit_code == 0, done.stderr
    answer = json.loads(done.stdout)
    without = json.loads(vlm_trt("generate", exported(name), "What happens?", "--json", *QUICK).stdout)
    assert answer["prompt_tokens"] > without["prompt_tokens"]
    talk = vlm_trt("chat", exported(name), *QUICK, stdin=f"/video {clip}\nWhat?\n/video\n/video {clip}x\n/quit\n")
    assert talk.exit_code == 0, talk.stderr
    assert "clip.mp4 goes with your next turn." in talk.stdout
    assert "/video needs the path of a video" in talk.stdout and "cannot be read: No such file" in talk.stdout


def test_pictures_and_videos_stand_as_they_were_typed(clip: Path, picture: Path, exported: Callable[..., Path]) -> None:
    def ids(*shown: object) -> list[int]:
        done = vlm_trt("generate", exported("qwen2_vl"), "x", *shown, "--detail", "low", "--json", *QUICK)
        found: list[int] = json.loads(done.stdout)["prompt_ids"]
        return found

    video, image = ("--video", clip), (f"--image={picture}",)
    first, last = ids(*video, *image), ids(*image, *video)
    assert first != last and sorted(first) == sorted(last)
    assert len(ids(*video, *image, *video)) > len(first)


def test_what_fails_is_one_line(
    clip: Path, picture: Path, tmp_path: Path, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(bundle: str, *options: object) -> str:
        done = vlm_trt("generate", exported(bundle), "x", *options, *QUICK)
        assert done.exit_code == 2 and done.stderr.count("\n") <= 2, done.stderr
        return done.stderr

    assert "LLaVA-1.5 takes no video; send frames of it as pictures" in refused("llava15", "--video", clip)
    assert "a.png is no video this version reads" in refused("qwen2_vl", "--video", picture)
    assert "is no picture this version reads" in refused("qwen2_vl", "--image", clip)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:600])
    assert "broken.mp4 is damaged or truncated" in refused("qwen2_vl", "--video", broken)
    drawn = ("--draw", tmp_path / "out.png")
    assert "a video stands behind it here; give the --image last" in refused(
        "qwen2_vl", "--image", picture, "--video", clip, *drawn
    )
    assert "--draw needs a picture to draw on" in refused("qwen2_vl", "--video", clip, *drawn)
    monkeypatch.setattr(videos, "find_spec", lambda name: None)
    assert "PyAV is missing; install it with: pip install" in refused("qwen2_vl", "--video", clip)


def test_a_clip_that_does_not_fit_says_what_would(tmp_path: Path, exported: Callable[..., Path]) -> None:
    long = tmp_path / "long.mp4"
    long.write_bytes(encoded_video(600, (32, 24)))
    done = vlm_trt("generate", exported("smolvlm2"), "x", "--video", long, *QUICK)
    assert done.exit_code == 2 and "1 video among them, and the bundle holds 256 positions" in done.stderr
    assert "send fewer pictures or a shorter video, or fewer of its frames, or export with a larger" in done.stderr
