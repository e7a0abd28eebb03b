"""A bundle on disk: its promises are checked, and no reader ever sees half a change."""

import mmap
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from vlm_trt.bundle import digests
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.digests import DigestCache, sha256_of
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import BundleError, StorageError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import exclusive, publish_folder, replace_file, require_room, staging_folder
from vlm_trt.bundle.stale import is_held, remove_unheld, staged_folders
from vlm_trt.bundle.store import MANIFEST, Bundle, publish_graphs


@pytest.fixture
def copy(copied: Callable[..., Path]) -> Path:
    """A bundle of one's own to damage."""
    return copied("image-224")


def entries(bundle: Bundle) -> tuple[GraphEntry, ...]:
    return bundle.manifest.graphs


@pytest.mark.parametrize(
    "file", ["graphs/fp32/decoder.weights", "graphs/fp32/vision_encoder.onnx", "tokenizer/qwen.tiktoken"]
)
def test_a_flipped_bit_is_refused(copy: Path, file: str) -> None:
    bundle = Bundle.open(copy)
    bundle.check(entries(bundle))
    path = copy / file
    stat = path.stat()
    with path.open("r+b") as opened:
        opened.seek(stat.st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the times as they were do not hide it
    with pytest.raises(BundleError, match=f"{file} was changed after it was made"):
        Bundle.open(copy).check(entries(bundle))


def test_a_remembered_digest_is_not_used_for_a_changed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "file"
    path.write_bytes(b"a" * 100)
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)  # remember at once
    monkeypatch.setattr(digests, "_SMALL_BYTES", 0)
    monkeypatch.setattr(digests, "_tells_changes", lambda path: True)
    cache = DigestCache()
    before = cache.digest(path)
    cache.save()
    assert DigestCache()._known  # it is remembered ...
    path.write_bytes(b"b" * 100)
    assert DigestCache().digest(path) == sha256_of(path) != before  # ... and not believed


@pytest.mark.parametrize("folder", [None, Path("/dev/shm")], ids=["disk", "memory"])
def test_a_store_through_a_mapping_that_was_dirty_already_is_seen(
    folder: Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a store changes no time of the file, and none ever does where a file system lies in memory."""
    if folder is not None and not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SMALL_BYTES", 0)
    monkeypatch.setattr(digests, "_SETTLED_NS", 1)
    with TemporaryDirectory(dir=folder or tmp_path) as place:
        path = Path(place) / "file"
        path.write_bytes(bytes(8192))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            mapping[0] = 1  # dirty from here on
            cache = DigestCache()
            before = cache.digest(path)
            mapping[0] = 2
            assert cache.digest(path) == sha256_of(path) != before


def test_small_files_and_file_systems_that_tell_nothing_are_hashed_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", -1)
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    cache = DigestCache()
    cache.digest(path)
    assert not cache._known
    monkeypatch.setattr(digests, "_SMALL_BYTES", 0)
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(digests, "MOUNTS", mounts)
    for kind, remembered in (("tmpfs", False), ("nfs4", False), ("overlay", False), ("ext4", True)):
        mounts.write_text(f"/dev/a / ext4 rw 0 0\nx {tmp_path} {kind} rw 0 0\ny {tmp_path}-other ext4 rw 0 0\n")
        cache.digest(path)
        assert bool(cache._known) is remembered, kind


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', "\x00", "[" * 200_000])
def test_a_damaged_digest_cache_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "vlm-trt").mkdir()
    (tmp_path / "vlm-trt" / "digests.json").write_text(content)
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert DigestCache().digest(path) == sha256_of(path)


def test_a_user_without_a_home_only_loses_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    path = tmp_path / "file"
    path.write_bytes(b"x")
    cache = DigestCache()
    assert cache.digest(path) == sha256_of(path)
    cache.save()


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "graphs/fp32/resampler.weights").unlink()
    with pytest.raises(BundleError, match=r"resampler\.weights is missing; export the checkpoint again"):
        Bundle.open(copy)


def test_a_shortened_file_is_named(copy: Path) -> None:
    os.truncate(copy / "graphs/fp32/decoder.weights", 100)
    with pytest.raises(BundleError, match=r"decoder\.weights has 100 bytes, the manifest says"):
        Bundle.open(copy)


def test_a_link_out_of_the_bundle_is_refused(copy: Path, tmp_path: Path) -> None:
    weights = copy / "graphs/fp32/decoder.weights"
    outside = tmp_path / "elsewhere"
    weights.rename(outside)
    weights.symlink_to(outside)
    with pytest.raises(BundleError, match="is a link that leaves the bundle"):
        Bundle.open(copy)


def test_a_hard_link_is_refused(copy: Path, tmp_path: Path) -> None:
    os.link(copy / "graphs/fp32/decoder.weights", tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"is a hard link that 1 other name\(s\) share; replace it by a copy"):
        Bundle.open(copy)


def test_a_folder_of_the_bundle_that_is_a_link_out_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "graphs").rename(tmp_path / "elsewhere")
    (copy / "graphs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link that leaves the bundle"):
        Bundle.open(copy)


def test_a_manifest_that_is_a_link_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / MANIFEST).rename(tmp_path / "elsewhere")
    (copy / MANIFEST).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link; copy the file in its place or export again"):
        Bundle.open(copy)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a folder; make a bundle with"):
        Bundle.open(tmp_path / "nothing")
    with pytest.raises(BundleError, match="holds no bundle.json, so it is no bundle"):
        Bundle.open(tmp_path)


def test_a_replacement_killed_between_its_steps_leaves_a_bundle_that_opens(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every rename and write of the publication fails once; after each, the bundle opens and is consistent."""
    bundle = Bundle.open(copy)
    decoder = bundle.manifest.graph(Component.DECODER, Precision.FP32)
    assert decoder is not None
    for fail_at in range(1, 9):
        staging = tmp_path / f"staging{fail_at}"
        shutil.copytree(copy / "graphs", staging / "graphs")
        calls = 0
        real = Path.replace

        def failing(self: Path, target: Path, fail_at: int = fail_at, real: Callable[..., Path] = real) -> Path:
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise KeyboardInterrupt
            return real(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing)
            try:
                publish_graphs(Bundle.open(copy), staging, (decoder,))
            except KeyboardInterrupt:
                left = Bundle.open(copy)
                left.check_all()
                assert left.manifest.graph(Component.DECODER, Precision.FP32) in (None, decoder)
                publish_graphs(left, _restaged(copy, tmp_path / f"again{fail_at}", staging), (decoder,))
    assert Bundle.open(copy).manifest.graph(Component.DECODER, Precision.FP32) == decoder


def _restaged(bundle: Path, target: Path, staging: Path) -> Path:
    """The staged decoder again, from wherever its two files lie now."""
    for name in ("decoder.onnx", "decoder.weights"):
        relative = Path("graphs/fp32") / name
        source = staging / relative if (staging / relative).exists() else bundle / relative
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / relative)
    return target


def test_two_writers_at_once_are_refused(copy: Path) -> None:
    with (
        exclusive(copy),
        pytest.raises(StorageError, match="is being written by another process; wait"),
        exclusive(copy),
    ):
        pass


def test_a_staging_folder_disappears_with_its_failure(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="oops"), staging_folder(tmp_path / "target") as staging:
        (staging / "half").write_text("x")
        raise ValueError("oops")
    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_appears_whole(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "target") as staging:
        (staging / "file").write_text("x")
        publish_folder(staging, tmp_path / "target")
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "file"]


def test_a_target_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with (
        pytest.raises(StorageError, match="target appeared meanwhile; remove it, or choose another folder"),
        staging_folder(target) as staging,
    ):
        target.mkdir()
        (target / "theirs").write_text("x")
        publish_folder(staging, target)
    assert [path.name for path in tmp_path.rglob("*")] == ["target", "theirs"]


def test_a_run_killed_while_it_publishes_leaves_nothing_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock stays in the folder until the rename, so that the next run knows whose it was."""

    class Killed(BaseException):
        pass

    def killed(self: Path, target: Path) -> Path:
        assert (self / ".lock").exists()
        raise Killed

    with pytest.raises(Killed), staging_folder(tmp_path / "target") as staging:
        monkeypatch.setattr(Path, "rename", killed)
        publish_folder(staging, tmp_path / "target")


def test_only_staging_folders_are_removed(tmp_path: Path) -> None:
    """A name of the user's own that looks alike, and a target whose name holds pattern characters."""
    for name in (".t.staging-of-my-notes", ".q[1].staging-0123abcd", ".q1.staging-0123abcd"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    assert staged_folders(tmp_path, "t") == []
    assert [path.name for path in staged_folders(tmp_path, "q[1]")] == [".q[1].staging-0123abcd"]
    assert all(remove_unheld(path) for path in staged_folders(tmp_path, "q[1]"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".q1.staging-0123abcd", ".t.staging-of-my-notes"]


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"), staging_folder(tmp_path / ("n" * 250)):
        pass


def _hold(target: str, ready: str) -> None:
    with staging_folder(Path(target)):
        Path(ready).touch()
        import time

        time.sleep(60)


def test_a_killed_runs_folder_is_removed_and_a_living_ones_is_not(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("spawn").Process(
        target=_hold, args=(str(tmp_path / "target"), str(tmp_path / "ready"))
    )
    worker.start()
    while not (tmp_path / "ready").exists():
        worker.join(0.05)
        assert worker.is_alive()
    (folder,) = staged_folders(tmp_path, "target")
    assert is_held(folder) and not remove_unheld(folder) and folder.exists()
    worker.kill()
    worker.join()
    assert not is_held(folder) and remove_unheld(folder) and not folder.exists()


def test_a_small_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / MANIFEST
    replace_file(path, "old")
    replace_file(path, "new")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == [MANIFEST]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"needs 1048576\.00 GiB and .* GiB are free; make room"):
        require_room(tmp_path / "target", 1 << 50)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="choose a folder you may write"),
        staging_folder(tmp_path / "file" / "target"),
    ):
        pass
