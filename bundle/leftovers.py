"""What killed runs left of a bundle, shown, and removed by the next command that writes into it.

Beside the bundle and in it: staging folders and temporary files that nobody holds (`bundle/stale.py`). In it: graphs,
engines and packed graphs at our paths that the manifest does not name, as a kill leaves them between two steps of
publication.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.lock import AT_WORK
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import ASKED, in_turn, require_folder
from vlm_trt.bundle.stale import LOCK, is_held, remove_unheld, staged_folders, temporary_files
from vlm_trt.bundle.store import (
    MANIFEST,
    NEW,
    Bundle,
    forget_lost,
    graph_path,
    packed_paths,
    require_text,
    weights_path,
)

Say = Callable[[str], None]
_OF_THE_DISK = {"lost+found"}  # in the root of a new file system
_WRITTEN = (
    "graphs", "graphs/*", "engines", "engines/*", "packed", "packed/*", "reports", "reports/*",
    "tokenizer", ".calibration",
)  # fmt: skip


@dataclass(frozen=True)
class Leftover:
    """A file or folder that nothing refers to."""

    path: Path
    bytes: int


def leftovers(bundle: Bundle) -> tuple[Leftover, ...]:
    """All that killed runs left, and the next command that writes removes."""
    abandoned = [path for path in (*_beside(bundle.path), *_inside(bundle.path)) if not is_held(path)]
    return tuple(Leftover(path, _bytes(path)) for path in (*abandoned, *_orphans(bundle)))


def open_to_write(path: Path, say: Say) -> Bundle:
    """The bundle in that folder, ready to be written into: what killed runs left is removed, and said. So is what the
    manifest has of engines and packed graphs that are lost, which could not be made again otherwise.

    Raises:
        BundleError, IncompatibleError: as `Bundle.open`.
        StorageError: the folder cannot be written.
    """
    if (path / MANIFEST).is_file():
        require_folder(path)
        for lost in forget_lost(path):
            say(f"{path / lost} is missing or not as it was made, so the bundle does not list it any more")
    bundle = Bundle.open(path)
    require_folder(path)
    _clear([*_beside(path), *_inside(path)], say)
    with in_turn(path):  # who publishes has files that no manifest names yet
        for orphan in _orphans(Bundle.open(path)):
            one = Leftover(orphan, _bytes(orphan))
            with suppress(OSError):
                orphan.unlink()
                _say_removed(one, say)
                orphan.parent.rmdir()  # if nothing else is in it
    return bundle


def destination(target: Path, say: Say) -> Bundle | None:
    """The bundle that is there to be added to; None where a new one can be made, in no folder yet or an empty one.

    Raises:
        BundleError, IncompatibleError: something else is there. UsageError: the path is no text.
        StorageError: it cannot be written, is a link that leads nowhere, or another process makes a bundle there.
    """
    require_text(target)
    if target.is_symlink() and not target.exists():
        raise StorageError(
            f"{target} is a link to {target.readlink()}, which is not there; make that folder, or remove the link"
        )
    _clear([*_beside(target), *staged_folders(target, NEW), *temporary_files(target, ASKED)], say)
    _name_others(target, say)
    if not target.exists():
        return None
    if staged_folders(target, NEW) and not (target / MANIFEST).exists():  # the others were removed
        raise StorageError(f"{target} is being written by another process; wait for it to finish")
    if target.is_dir() and {path.name for path in target.iterdir()} <= _OF_THE_DISK:
        require_folder(target)
        return None
    return open_to_write(target, say)


def _clear(staged: Iterable[Path], say: Say) -> None:
    """Removes those that nobody holds."""
    for path in staged:
        one = Leftover(path, _bytes(path))
        if remove_unheld(path):
            _say_removed(one, say)


def _name_others(target: Path, say: Say) -> None:
    """Says what exports to other folders left; only who made them knows that none of them runs on another host."""
    for path in staged_folders(target.absolute().parent):
        if not is_held(path):
            say(f"{path} ({_bytes(path) / 2**20:.1f} MiB) was left by another export that was ended; it may be removed")


def _say_removed(one: Leftover, say: Say) -> None:
    say(f"removed {one.path}, {one.bytes / 2**20:.1f} MiB that a run which was ended had left")


def _beside(path: Path) -> list[Path]:
    """What was staged to become that folder."""
    return staged_folders(path.absolute().parent, path.absolute().name)


def _inside(path: Path) -> Iterator[Path]:
    """What is staged, or written, in a bundle, and locks: of an export killed right after its last rename, of work."""
    for folder in (path, *(one for place in _WRITTEN for one in sorted(path.glob(place)) if not one.is_symlink())):
        yield from (*staged_folders(folder), *temporary_files(folder))
    yield from (lock for lock in (path / LOCK, path / AT_WORK) if lock.is_file() and not lock.is_symlink())


def _orphans(bundle: Bundle) -> list[Path]:
    """Files where only graphs and engines lie, and the manifest knows nothing of them."""
    known = {file.path for file in bundle.manifest.files()}
    graphs = {graph_path(component, precision) for precision in Precision for component in Component}
    graphs |= {
        path
        for precision in Precision
        for component in Component
        if component.has_weights
        for path in (weights_path(component, precision), *packed_paths(component, precision))
    }
    plans = {
        plan.relative_to(bundle.path).as_posix()
        for component in Component
        for plan in bundle.path.glob(f"engines/*/{component}.plan")
    }
    root = bundle.path.resolve()
    found = (root / path for path in sorted((graphs | plans) - known))
    return [bundle.path / path.relative_to(root) for path in found if path.is_file() and path.resolve() == path]


def _bytes(path: Path) -> int:
    """Of a file, or of all files in a folder; others may be at work in it."""
    files = [path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_size if not file.is_dir() else 0
    return total
