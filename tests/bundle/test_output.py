"""Files that a user names: regular ones whole or as they were, devices and pipes written to, links followed."""

import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.kills import kills
from tests.mounted import run_with_disk
from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.output import require_output, require_output_folder, write_output, write_outputs


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_made_or_replaced_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "result é\n.json"
    for content in ("first", b"second"):
        require_output(path)
        write_output(path, content)
    assert path.read_bytes() == b"second" and listed(tmp_path) == [path.name]


def test_asking_changes_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")
    before = old.stat()
    require_output(old)
    require_output(new)
    require_output_folder(tmp_path / "a" / "b", ["c"])
    assert old.stat() == before and listed(tmp_path) == ["old"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """To a file, and to one that is not there yet."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("there", "new"):
        goal = tmp_path / "elsewhere" / name
        if name == "there":
            goal.write_text("old")
        (tmp_path / name).symlink_to(goal)
        require_output(tmp_path / name)
        write_output(tmp_path / name, "result")
        assert (tmp_path / name).is_symlink() and goal.read_text() == "result"
    assert listed(tmp_path) == ["elsewhere", "new", "there"]


def test_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")
    path.chmod(0o640)
    write_output(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_device_is_written_and_stays_one(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_bytes(b"")
    except PermissionError:
        pytest.skip("needs the right to make a device and a file system that lets it be used")
    (tmp_path / "link").symlink_to(device)
    for path in (device, tmp_path / "link"):
        require_output(path)
        write_output(path, "result")
        assert stat.S_ISCHR(device.stat().st_mode) and (tmp_path / "link").is_symlink()
    assert listed(tmp_path) == ["link", "null"]


def test_a_pipe_is_written(tmp_path: Path) -> None:
    path, read = tmp_path / "pipe", []
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    require_output(path)  # opens nothing: the reader would see an end
    write_output(path, b"result" * 100_000)
    reader.join(10)
    assert read == [b"result" * 100_000] and stat.S_ISFIFO(path.stat().st_mode)


def test_standard_output_by_every_name(tmp_path: Path) -> None:
    """A file that the shell has opened is written on, not replaced: what was printed before stays."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom vlm_trt.bundle.output import require_output, write_output\n"
        "print('table')\n"
        "for name in sys.argv[1:]:\n    require_output(Path(name))\n    write_output(Path(name), f'{name}\\n')\n"
    )
    captured = tmp_path / "captured"
    names = ["-", "/dev/stdout", str(captured)]
    with captured.open("w") as file:
        subprocess.run([sys.executable, "-c", code, *names], stdout=file, cwd=ROOT, check=True)
    assert captured.read_text() == f"table\n-\n/dev/stdout\n{captured}\n"
    piped = subprocess.run(
        [sys.executable, "-c", code, *names[:2]], stdout=subprocess.PIPE, cwd=ROOT, check=True, text=True
    )
    assert piped.stdout == "table\n-\n/dev/stdout\n" and listed(tmp_path) == ["captured"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("folder", "folder cannot be written: it is a folder; name another file"),
        ("nowhere/result", r"cannot be written: there is no .*/nowhere; name another file"),
        ("dangling", r"dangling cannot be written: there is no .*/gone; name another file"),
        ("file/result", "file/result cannot be written: Not a directory; name another file"),
        ("loop", "loop cannot be written: Too many levels of symbolic links; name another file"),
        ("n" * 255, "n cannot be written: File name too long; name another file"),
        ("socket", "socket cannot be written: it is a disk or a socket; name another file"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("gone/result")
    os.mknod(tmp_path / "socket", 0o600 | stat.S_IFSOCK)
    with pytest.raises(StorageError, match=sentence):
        require_output(tmp_path / name)
    with pytest.raises(StorageError, match="cannot be written: .*; name another"):
        require_output_folder(tmp_path / "folder", [*_as_files(tmp_path, name), "fine"])


def _as_files(tmp_path: Path, name: str) -> list[str]:
    """The same, as a file of an output folder."""
    return [os.path.relpath(tmp_path / name, tmp_path / "folder")]


def test_a_folder_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    require_output_folder(folder, ["one", "two"])
    write_outputs(folder, {"one": "1", "two": "2"})
    assert listed(folder) == ["one", "two"]
    for wrong, sentence in ((folder / "one", "one is no folder; name another"), (Path("-"), "- is standard output")):
        with pytest.raises(StorageError, match=sentence):
            require_output_folder(wrong, ["x"])


def test_a_writer_that_is_killed_leaves_a_whole_file_and_the_next_one_tidies(tmp_path: Path) -> None:
    def prepare(step: int) -> Callable[[], None]:
        (tmp_path / str(step)).mkdir()
        write_output(tmp_path / str(step) / "result", "old")
        return lambda: write_output(tmp_path / str(step) / "result", "new")

    for step in kills(prepare):
        path = tmp_path / str(step) / "result"
        assert path.read_text() in ("old", "new")
        write_output(path, "newer")
        assert path.read_text() == "newer" and listed(path.parent) == ["result"]


def test_a_name_that_is_no_text_can_be_written_down(tmp_path: Path) -> None:
    """JSON reads the escape as the same name."""
    import json

    name = os.fsdecode(b"photo\xff.png")
    write_output(tmp_path / name, json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / name).read_text(encoding="utf-8")) == {"name": name}


DISK = """
import os, sys
from pathlib import Path
from tests.bundle import tiny
from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.leftovers import leftovers
from vlm_trt.bundle.output import require_output, require_output_folder, write_output, write_outputs
from vlm_trt.bundle.store import Bundle
disk = Path(sys.argv[1])
bundle = tiny.new(disk / "bundle")
write_output(disk / "result", "old")
before = tiny.files(disk)
big = "x" * 300_000
work = {
    "evaluate -o": lambda: write_output(disk / "result", big),
    "evaluate -o new": lambda: write_output(disk / "fresh", big),
    "profile -o": lambda: write_outputs(disk / "report", {"profile.json": big}),
    "verify": lambda: bundle.record(tiny.verdict(bundle), big),
    "export --force": lambda: tiny.replace_graph(bundle.path, big),
    "build": lambda: tiny.add_engine(bundle.path, big),
    "export": lambda: tiny.new(disk / "other", big),
}
for name, writes in work.items():
    try:
        writes()
    except StorageError as error:
        assert "full" in str(error) or "No space left" in str(error), error
        print(name, "refused")
    assert tiny.files(disk) == before, (name, tiny.files(disk))
    assert not (disk / "report").exists() and not (disk / "other").exists()
    assert (disk / "result").read_text() == "old"
    Bundle.open(bundle.path).check_all()
    assert Bundle.open(bundle.path).manifest == bundle.manifest and not leftovers(bundle)
"""


def test_a_full_disk_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """What every command that writes does, on a real file system of 256 KiB, mounted in a namespace of its own."""
    disk = tmp_path / "disk"
    done = run_with_disk(disk, "size=256k", [sys.executable, "-c", DISK, disk])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("refused") == 7


def test_commands_write_by_no_other_way() -> None:
    """What a command is given as an output goes through this module, or into the bundle."""
    writing = re.compile(r"\.write_(text|bytes)\(|\.open\(\"[wax]|replace_file\(|\.touch\(|[^.]open\([^)]*\"[wax]")
    assert not [path for path in (ROOT / "commands").glob("*.py") if writing.search(path.read_text(encoding="utf-8"))]
