"""`--draw`: what cannot be written is said before the answer is generated, and what is drawn is where it belongs."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from tests.runtime.sequences import OTHER_PICTURE, PICTURE
from vlm_trt.bundle.errors import StorageError, UsageError
from vlm_trt.commands.draw import require_drawable, write_drawing
from vlm_trt.families.messages import Grounding, Image, Text
from vlm_trt.runtime.model import Answer

PARTS = [Image(PICTURE, "a.png")]


def answer_with(*places: Grounding) -> Answer:
    return Answer("", "", places, (), (), "stop", 0, 0, {}, ())


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".tiff"])
def test_every_named_format_is_written(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / f"out{suffix}"
    require_drawable(target, [], PARTS)
    assert not target.exists()
    write_drawing(answer_with(), [Image(PICTURE, "a")], target)
    with Picture.open(target) as written:
        written.load()
        assert written.format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
    assert "the answer names no place, so it is the picture as it was" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.", ".png", "out.xyz", "out.pdf", "out.gif"])
def test_an_ending_that_is_no_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"the name's ending chooses the format; use one of \.png, \.jpg"):
        require_drawable(tmp_path / name, [], PARTS)


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
        require_drawable(tmp_path / name, [], PARTS)


def test_asking_changes_no_file_that_is_there(tmp_path: Path) -> None:
    target = tmp_path / "out.png"
    target.write_bytes(b"precious")
    require_drawable(target, [], PARTS)
    assert target.read_bytes() == b"precious"


def test_the_picture_itself_is_never_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, by another path, by a symbolic and by a hard link; a file of the same content is another file."""
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.png"
    source.write_bytes(PICTURE)
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked.png").symlink_to(source)
    (tmp_path / "same.png").hardlink_to(source)
    for name in ("a.png", "./a.png", "folder/../a.png", "linked.png", "same.png", str(source)):
        with pytest.raises(UsageError, match=r" would overwrite .*a\.png, which is read; choose another"):
            require_drawable(Path(name), [Path("b.png"), source], PARTS)
    (tmp_path / "copy.png").write_bytes(PICTURE)
    require_drawable(Path("copy.png"), [source], PARTS)
    assert source.read_bytes() == PICTURE


@pytest.mark.parametrize(("name", "longest"), [("x.webp", 16383), ("x.png", None), ("x.tif", None)])
def test_a_format_that_cannot_hold_the_picture_is_refused(tmp_path: Path, name: str, longest: int | None) -> None:
    encoded = BytesIO()
    Picture.new("RGB", (16384, 2)).save(encoded, "PNG")
    parts = [Image(encoded.getvalue(), "long.png")]
    if longest is None:
        require_drawable(tmp_path / name, [], parts)
        write_drawing(answer_with(), parts, tmp_path / name)
        return
    sentence = rf"{name}: WEBP holds at most {longest} pixels a side, and the picture is 16384×2; use \.png"
    with pytest.raises(UsageError, match=sentence):
        require_drawable(tmp_path / name, [], parts)


def test_a_picture_with_alpha_is_drawn_without_it_in_any_format(tmp_path: Path) -> None:
    encoded = BytesIO()
    Picture.new("RGBA", (8, 8), (200, 10, 10, 40)).save(encoded, "PNG")
    require_drawable(tmp_path / "x.jpg", [], [Image(encoded.getvalue())])
    write_drawing(answer_with(), [Image(encoded.getvalue())], tmp_path / "x.jpg")
    with Picture.open(tmp_path / "x.jpg") as drawn:
        assert drawn.mode == "RGB" and drawn.getpixel((4, 4))[0] > 190  # type: ignore[index]


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
    require_drawable(target, [], PARTS)
    with pytest.raises(StorageError, match=r"out\.png cannot be written: No space left on device; name another"):
        write_drawing(answer_with(), [Image(PICTURE, "a")], target)
