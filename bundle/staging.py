"""Files that appear whole or not at all: staging beside the target, fsync, one rename."""

import errno
import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from vlm_trt.bundle.errors import StorageError

_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_REFUSED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
)  # fmt: skip


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A new folder on the target's file system, removed at the end whatever happens.

    It is locked while it is in use, so that the folder of a killed run is known and removed by the next.

    Args:
        target: what will be published; the staging folder lies beside it.
    Raises:
        StorageError: the place cannot be written, or the disk is full.
    """
    parent = target.absolute().parent
    with storage_errors(target):
        parent.mkdir(parents=True, exist_ok=True)
        remove_stale(parent, target.name)
        folder = parent / f".{target.name}.staging-{token_hex(4)}"
        folder.mkdir()
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with storage_errors(target):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def publish_folder(staging: Path, target: Path) -> None:
    """Makes a staged folder the target by one rename, everything in it on disk first."""
    sync_tree(staging)
    with storage_errors(target):
        staging.rename(target)
    # After the rename: killed before it, the folder still carries the lock by which the next export knows it.
    (target / _LOCK).unlink(missing_ok=True)
    sync(target.absolute().parent)


def replace_file(path: Path, content: str | bytes) -> None:
    """Writes a small file, text as UTF-8, so that a reader sees the old or the new content, never a part."""
    temporary = path.with_name(f".{path.name}.{token_hex(4)}")
    try:
        with storage_errors(path):
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
            sync(temporary)
            temporary.replace(path)
            sync(path.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One writer at a time.

    Raises:
        StorageError: another process is writing there.
    """
    with storage_errors(folder):
        lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(f"{folder} is being written by another process; wait for it to finish") from None
        yield
    finally:
        os.close(lock)


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


def remove_stale(parent: Path, name: str) -> None:
    """Removes what killed runs left behind: staging folders that nobody holds locked."""
    for folder in parent.glob(f".{glob.escape(name)}.staging-{'[0-9a-f]' * 8}"):
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except OSError:
            continue  # being made or being published right now
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)


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
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
