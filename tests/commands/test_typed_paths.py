"""Paths as a person types them, and what the tab key makes of their beginnings."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_trt.bundle.errors import UsageError
from vlm_trt.commands.chat import completed_lines
from vlm_trt.commands.typed_paths import completed, typed_paths


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("my picture.png", "mine.png", "it's.png", ".hidden.png", 'quoted "b".png', "other.png"):
        (tmp_path / name).touch()
    (tmp_path / "more pictures").mkdir()
    (tmp_path / "more pictures" / "c.png").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("mine.png", ["mine.png"]),
        ("my picture.png", ["my picture.png"]),
        ("my\\ picture.png", ["my picture.png"]),
        ("'my picture.png'", ["my picture.png"]),
        ('"my picture.png" mine.png', ["my picture.png", "mine.png"]),
        ("mine.png other.png", ["mine.png", "other.png"]),
        ("it's.png", ["it's.png"]),
        ('"it\'s.png"', ["it's.png"]),
        ("nothing here.png", ["nothing here.png"]),
        ("'nothing here.png'", ["nothing here.png"]),
        ("file:///a%20b.png", ["/a b.png"]),
    ],
)
def test_what_is_typed_is_what_is_meant(folder: Path, typed: str, names: list[str]) -> None:
    assert typed_paths(typed) == [Path(name) for name in names]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("", "/image needs the path of a picture"),
        ("'open.png", "'open.png has a quote or a backslash at its end that nothing closes; close it"),
        (
            "~nosuchuser/a.png",
            "~nosuchuser/a.png begins with the home folder of a user that this machine does not have",
        ),
    ],
)
def test_what_can_be_no_path_is_said(typed: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        typed_paths(typed)


def test_a_path_is_completed_as_it_was_begun(folder: Path) -> None:
    assert completed("mi") == ["mine.png"]
    assert completed("my") == ["my\\ picture.png"]
    assert completed("my\\ p") == ["my\\ picture.png"]
    assert completed("'my") == ["'my picture.png'"]
    assert completed("it") == ["it\\'s.png"]
    assert completed('"it') == ['"it\'s.png"']
    assert completed("'it") == []
    assert completed("more") == ["more\\ pictures/"]
    assert completed('"more pictures/') == ['"more pictures/c.png"']
    assert completed("./o") == ["./other.png"]
    assert completed(".h") == [".hidden.png"]
    assert all("hidden" not in path for path in completed(""))
    assert completed(f"{folder}/mi") == [f"{folder}/mine.png"]
    assert completed("nowhere/x") == completed("~nosuchuser/x") == completed("a\0b/") == []


def test_whatever_is_completed_is_the_path_when_it_is_typed(folder: Path) -> None:
    found = [typed_paths(path)[0] for path in (*completed(""), *completed("'"), *completed('"')) if path[-1] != "/"]
    assert {path.name for path in found} == {path.name for path in folder.iterdir() if path.suffix} - {".hidden.png"}


def test_a_line_is_completed_to_commands_and_to_paths_of_pictures(folder: Path) -> None:
    assert completed_lines("/im") == ["/image "]
    assert completed_lines("/image mi") == ["/image mine.png"]
    assert completed_lines("/reset mi") == completed_lines("what is mi") == completed_lines("") == []


def test_the_tab_key_completes_at_a_terminal(folder: Path) -> None:
    """A prompt in a process of its own, at a terminal that types."""
    pytest.importorskip("readline")
    script = (
        "from vlm_trt.commands.chat import completed_lines\n"
        "from vlm_trt.commands.typed_paths import complete_with\n"
        "complete_with(completed_lines)\nprint(ascii(input('> ')))"
    )
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb", "INPUTRC": "/dev/null"}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as run:
        os.close(slave)
        os.write(master, b"/im\tmy\t\n")
        shown = b""
        while b"png'" not in shown and (more := os.read(master, 4096)):
            shown += more
        run.wait(30)
    os.close(master)
    assert b"'/image my\\\\ picture.png'" in shown, shown
