"""`--draw`: what cannot be written is said before the answer is generated, and what is drawn is where it belongs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from tests.runtime.sequences import OTHER_PICTURE, PICTURE
from vlm_trt.bundle.errors import StorageError, UsageError
from vlm_trt.commands.draw import require_drawable, write_drawing
from vlm_trt.families.messages import Grounding, Image, Text
from vlm_trt.runtime.model import Answer


def answer_with(*places: Grounding) -> Answer:
    return Answer("", "", places, (), (), "stop", 0, 0, {}, ())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".tiff"])
def test_every_named_format_is_written(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / f"out{suffix}"
    require_drawable(target)
    assert not target.exists()
    write_drawing(answer_with(), [Image(PICTURE, "a")], target)
    with Picture.open(target) as written:
        written.load()
        assert written.format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
    assert "the answer names no place, so it is the picture as it was" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.", ".png", "out.xyz", "out.pdf", "out.gif"])
def test_an_ending_that_is_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"the name's ending chooses the format; use one of \.png, \.jpg"):
        require_drawable(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nowhere/out.png", "there is no .*nowhere"),
        ("folder.png", "it is a folder"),
        ("file/out.png", "Not a directory"),
        (f"{'n' * 255}.png", "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=rf"{name} cannot be written: {sentence}; name another file"):
        require_drawable(tmp_path / name)


def test_asking_changes_no_file_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"precious")
    require_drawable(target)
    assert target.read_bytes() == b"precious"


def test_a_place_is_drawn_into_the_last_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Grounding("circle", "box", ((10.0, 10.0), (60.0, 50.0)), 1)
    elsewhere = Grounding("star", "box", ((10.0, 10.0), (60.0, 50.0)), 0)
    pictures = [Image(PICTURE, "a"), Image(OTHER_PICTURE, "b"), Text("x")]
    for name, found in (("drawn", place), ("bare", elsewhere)):
        write_drawing(answer_with(found), pictures, tmp_path / f"{name}.png")
    drawn, bare = (np.asarray(Picture.open(tmp_path / f"{name}.png")) for name in ("drawn", "bare"))
    differing = (drawn != bare).any(axis=2)
    assert differing[10, 10:60].all() and differing[10:50, 60].all() and not differing[70:].any()
    assert capsys.readouterr().err.count("names no place") == 1


def test_a_disk_that_fills_up_meanwhile_is_a_sentence(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a device that is always full")
    target = tmp_path / "out.png"
    target.symlink_to("/dev/full")
    require_drawable(target)
    with pytest.raises(StorageError, match=r"out\.png cannot be written: No space left on device; name another"):
        write_drawing(answer_with(), [Image(PICTURE, "a")], target)
