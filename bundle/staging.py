"""Files that appear whole or not at all: staged beside the target, synced, renamed; what is staged carries a lock.

What a killed run leaves is known by its lock, and removed by `bundle/stale.py`.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep

from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.stale import LOCK, MOVED, hold, hold_new_folder, remove, remove_unheld, staged_folders

ASKED = "asked"  # the file that shows whether a folder can be written
_TURN_SECONDS = 120.0
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
    errno.ENAMETOOLONG, errno.EBUSY, errno.ELOOP,
)  # fmt: skip


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A new folder on the target's file system, removed at the end whatever happens.

    Args:
        target: what will be published; the staging folder lies beside it.
    Raises:
        StorageError: the place cannot be written, or the disk is full.
    """
    parent = target.absolute().parent
    with storage_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        for left in staged_folders(parent, target.name):
            remove_unheld(left)
        folder, lock = hold_new_folder(parent, target.name)
    try:
        with storage_errors(target):
            yield folder
    finally:
        remove(folder)
        os.close(lock)


def publish_folder(staging: Path, target: Path) -> None:
    """Makes a staged folder the target by one rename, everything in it on disk first."""
    sync_tree(staging)
    with storage_errors(target):
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise StorageError(f"{target} appeared meanwhile; remove it, or choose another folder") from error
            raise
    # After the rename: killed before it, the folder still carries the lock by which the next writer knows it.
    (target / LOCK).unlink(missing_ok=True)
    sync(target.absolute().parent)


def publish_inside(staging: Path, last: str) -> None:
    """Moves all that is staged to the folder in which the staging folder lies, `last` by the last rename.

    Ended before that one, by an error or a kill, all of it is moved back by whoever removes the staging folder.
    """
    target = staging.parent
    with storage_errors(target):
        names = sorted({path.name for path in staging.iterdir()} - {last, LOCK, MOVED})
        replace_file(staging / MOVED, json.dumps([*names, last]))
        sync_tree(staging)
        for name in (*names, last):
            if os.path.lexists(target / name):
                raise StorageError(f"{target / name} appeared meanwhile; remove it, or choose another folder")
            (staging / name).rename(target / name)
            sync(target)


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a small file, so that a reader sees the old or the new content, never a part.

    A link at the path is replaced, not followed; for files that a user names there is `output.write_output`.
    """
    with storage_errors(path), temporary_file(path) as (temporary, descriptor):
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(encoded(content))
        os.fsync(descriptor)
        temporary.replace(path)
        sync(path.absolute().parent)


def encoded(content: str | bytes) -> bytes:
    """Text as UTF-8; bytes of file names that UTF-8 cannot hold as escapes, which JSON reads as the same name."""
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


@contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, int]]:
    """A new file beside the path and its descriptor, removed at the end if it still has its name."""
    while True:
        temporary = path.with_name(f".{path.name}.writing-{token_hex(4)}")
        descriptor = hold(temporary)
        if descriptor is not None:
            break
    try:
        yield temporary, descriptor
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One writer at a time.

    Raises:
        StorageError: another process is writing there.
    """
    with _locked(folder, wait_seconds=0):
        yield


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """One writer after the other, for steps that take moments: the work before them must not be lost.

    Raises:
        StorageError: another process keeps the folder to itself for minutes.
    """
    with _locked(folder, _TURN_SECONDS):
        yield


@contextmanager
def _locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    with storage_errors(folder):
        lock = os.open(folder, os.O_RDONLY)
    until = monotonic() + wait_seconds
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if monotonic() >= until:
                    raise StorageError(f"{folder} is being written by another process; wait for it to finish") from None
                sleep(0.02)
        yield
    finally:
        os.close(lock)


def require_folder(folder: Path) -> None:
    """Asked before work begins whose result goes there.

    Raises:
        StorageError: files in it can not be made, or not be removed.
    """
    with storage_errors(folder), temporary_file(folder / ASKED):
        pass


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turns the system's refusals into sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            free = _free_bytes(target)
            raise StorageError(
                f"writing {target}: the disk is full or a quota is reached ({free / 2**30:.2f} GiB free); "
                "nothing was published, make room and run it again"
            ) from error
        if error.errno in _REFUSED:
            raise StorageError(
                f"writing {target}: {error.strerror} ({error.filename}); choose a folder you may write"
            ) from error
        raise


def require_room(target: Path, needed_bytes: int) -> None:
    """
    Raises:
        StorageError: fewer bytes are free where the target will lie.
    """
    free = _free_bytes(target)
    if needed_bytes > free:
        raise StorageError(
            f"{target} needs {needed_bytes / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; "
            "make room or choose another disk"
        )


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(target: Path) -> int:
    place = target.absolute()
    while not os.path.exists(place):  # noqa: PTH110 - Path.exists raises where a name is too long
        place = place.parent
    return shutil.disk_usage(place).free
