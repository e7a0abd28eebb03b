"""What killed runs leave: it opens, it is shown, and the next command that writes removes it."""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.bundle import tiny
from tests.kills import killed_at, kills
from vlm_trt.bundle.errors import BundleError, StorageError, UsageError
from vlm_trt.bundle.leftovers import destination, leftovers, open_to_write
from vlm_trt.bundle.lock import at_work
from vlm_trt.bundle.staging import staging_folder
from vlm_trt.bundle.store import Bundle, publish_new, staging_of


def quiet(_: str) -> None:
    pass


@pytest.mark.parametrize("what", tiny.WRITERS)
def test_a_writer_killed_at_any_step_leaves_a_bundle_that_opens(tmp_path: Path, what: str) -> None:
    """And whatever else it leaves is shown, and gone after the next command that writes."""
    tiny.new(tmp_path / "made")
    seen = 0

    def prepare(step: int) -> Callable[[], None]:
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "made", path)
        return lambda: tiny.WRITERS[what](path)

    for step in kills(prepare):
        path = tmp_path / str(step)
        bundle = Bundle.open(path)
        bundle.check_all()
        found = leftovers(bundle)
        seen += bool(found)
        extra = set(tiny.files(path)) - set(tiny.named(bundle))
        assert extra == {name for one in found for name in _files_of(one.path, path)}, step
        assert sum((path / name).stat().st_size for name in extra) == sum(one.bytes for one in found)
        bundle = open_to_write(path, quiet)
        bundle.check_all()
        assert leftovers(bundle) == () and tiny.files(path) == tiny.named(bundle), step
    assert seen > 3


def _files_of(one: Path, root: Path) -> set[str]:
    files = [one / name for name in tiny.files(one)] if one.is_dir() else [one]
    return {file.relative_to(root).as_posix() for file in files}


@pytest.mark.parametrize("there", [False, True], ids=["no-folder", "empty-folder"])
def test_an_export_killed_at_any_step_can_be_made_again(tmp_path: Path, there: bool) -> None:
    """Where no folder is, and in one that the user has, such as a mount point."""

    def prepare(step: int) -> Callable[[], Bundle]:
        path = tmp_path / str(step) / "bundle"
        (path / "lost+found" if there else path.parent).mkdir(parents=True)
        return lambda: tiny.new(path)

    for step in kills(prepare):
        path = tmp_path / str(step) / "bundle"
        if (path / "bundle.json").exists():
            Bundle.open(path).check_all()
        found = destination(path, quiet)
        if found is not None:
            assert leftovers(found) == () and tiny.files(path) == tiny.named(found)
            continue
        assert [one.name for one in path.parent.iterdir()] == ["bundle"] * there
        assert not there or [one.name for one in path.iterdir()] == ["lost+found"]
        bundle = tiny.new(path)
        assert leftovers(bundle) == () and tiny.files(path) == tiny.named(bundle)


def test_a_sweep_that_is_killed_too_is_done_by_the_next_one(tmp_path: Path) -> None:
    """All but the manifest had been moved into the user's folder: it is moved back, at whatever step that ends."""
    (tmp_path / "half").mkdir()
    at = next(step for step in count(1) if _half_moved(tmp_path / "half", step))

    def prepare(step: int) -> Callable[[], object]:
        path = tmp_path / str(step)
        path.mkdir()
        assert killed_at(at, lambda: tiny.new(path)) and (path / "graphs").exists()
        return lambda: destination(path, quiet)

    for step in kills(prepare):
        assert destination(tmp_path / str(step), quiet) is None
        assert list((tmp_path / str(step)).iterdir()) == []


def _half_moved(path: Path, step: int) -> bool:
    """Whether the export was killed before its last rename."""
    assert killed_at(step, lambda: tiny.new(path))
    if (path / "graphs").exists() and (path / "tokenizer").exists():
        return True
    destination(path, quiet)
    return False


def test_what_is_in_use_is_neither_shown_nor_removed(tmp_path: Path) -> None:
    bundle = tiny.new(tmp_path / "bundle")
    with staging_folder(bundle.path / "graphs") as staging:
        (staging / "weights").write_text("x")
        assert leftovers(bundle) == ()
        open_to_write(bundle.path, quiet)
        assert (staging / "weights").exists()


def test_the_lock_of_work_that_was_killed_goes_and_one_in_use_stays(tmp_path: Path) -> None:
    bundle = tiny.new(tmp_path / "bundle")
    with at_work(bundle.path):
        open_to_write(bundle.path, quiet)
        assert (bundle.path / ".at-work").exists() and leftovers(bundle) == ()
    (bundle.path / ".at-work").write_text("process 1")
    assert [one.path.name for one in leftovers(bundle)] == [".at-work"]
    open_to_write(bundle.path, quiet)
    assert not (bundle.path / ".at-work").exists()


def test_what_lacks_a_lock_is_nobodys(tmp_path: Path) -> None:
    """As earlier versions left it, when they were killed while they removed a folder."""
    bundle = tiny.new(tmp_path / "bundle")
    left = bundle.path / ".graphs.staging-0123abcd"
    (left / "graphs").mkdir(parents=True)
    (left / "graphs" / "decoder.weights").write_bytes(bytes(1000))
    (found,) = leftovers(bundle)
    assert (found.path, found.bytes) == (left, 1000)
    said: list[str] = []
    open_to_write(bundle.path, said.append)
    assert said == [f"removed {left}, 0.0 MiB that a run which was ended had left"] and not left.exists()


def test_what_a_user_has_put_there_stays(tmp_path: Path) -> None:
    bundle = tiny.new(tmp_path / "bundle")
    own = ["notes.txt", "graphs/fp16/decoder.txt", "graphs/mine.onnx", ".bundle.json.20240131", "reports/x/y.json"]
    for name in own:
        (bundle.path / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle.path / name).write_text("precious")
    elsewhere = tiny.new(tmp_path / "elsewhere").path
    (bundle.path / "engines").symlink_to(elsewhere / "graphs")
    assert leftovers(bundle) == ()
    open_to_write(bundle.path, quiet)
    assert set(own) < set(tiny.files(bundle.path))


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    for name in (".notes.writing-0123abcd", "graphs/.x.staging-0123abcd/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("precious")
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        destination(tmp_path, quiet)
    assert len(tiny.files(tmp_path)) == 2


def test_what_another_export_left_beside_is_named_and_stays(tmp_path: Path) -> None:
    """Whether its process is gone can be seen on this host only."""
    (tmp_path / ".other.staging-0123abcd").mkdir()
    said: list[str] = []
    assert destination(tmp_path / "bundle", said.append) is None
    assert len(said) == 1 and ".other.staging-0123abcd (0.0 MiB) was left by another export" in said[0]


def test_a_bundle_is_made_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is there, through a link to it, in the current one."""
    for name in ("folder", "behind", "current"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("behind")
    monkeypatch.chdir(tmp_path / "current")
    for target in (tmp_path / "folder", tmp_path / "link", Path()):
        assert destination(target, quiet) is None
        made = tiny.new(target)
        assert tiny.files(target) == tiny.named(made)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "behind" / "bundle.json").exists()


def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    for name, goal in (("dangling", "gone"), ("loop", "loop")):
        (tmp_path / name).symlink_to(goal)
        with pytest.raises(StorageError, match=f"{name} is a link to {goal}, which is not there; make that folder, or"):
            destination(tmp_path / name, quiet)


def test_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"bundle\xff")
    for asks in (Bundle.open, lambda path: destination(path, quiet)):
        with pytest.raises(UsageError, match=r"the path b'.*bundle\\xff' is no UTF-8, so no graph in it can be opened"):
            asks(path)


def test_two_exports_into_one_folder(tmp_path: Path) -> None:
    """The second is refused at once; one that got through before is refused when it publishes."""
    with staging_folder(staging_of(tmp_path)), pytest.raises(StorageError, match="is being written by another process"):
        destination(tmp_path, quiet)
    with staging_folder(staging_of(tmp_path)) as late:
        bundle = tiny.new(tmp_path)
        (late / "tokenizer").mkdir()
        with pytest.raises(StorageError, match=r"tokenizer appeared meanwhile; remove it, or choose another folder"):
            publish_new(late, tmp_path, bundle.manifest)
    Bundle.open(tmp_path).check_all()
    assert tiny.files(tmp_path) == tiny.named(bundle)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; tests/exporter/test_export.py mounts a disk that is read-only")
    bundle = tiny.new(tmp_path / "bundle")
    bundle.path.chmod(0o500)
    with pytest.raises(StorageError, match="choose a folder you may write"):
        open_to_write(bundle.path, quiet)
