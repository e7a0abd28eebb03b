"""What killed runs leave: every staging folder and temporary file carries a lock that ends with its process.

A staging folder `.<name>.staging-<8 hex>` is locked by the file `.lock` in it, which is made first and removed last; a
temporary file `.<name>.writing-<8 hex>` by itself. What nobody holds is removed by the next command that writes there.
"""

import fcntl
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

from vlm_trt.bundle.reading import read_json

LOCK = ".lock"
MOVED = ".moved"  # in a staging folder: the names that are being moved to the folder around it, in order
_FOLDER = re.compile(r"\.(.+)\.staging-[0-9a-f]{8}", re.DOTALL)
_FILE = re.compile(r"\.(.+)\.writing-[0-9a-f]{8}", re.DOTALL)


def staged_folders(folder: Path, name: str | None = None) -> list[Path]:
    """Staging folders there, in use or left behind.

    Args:
        folder: where to look; one that cannot be read has none.
        name: of what is to be published; None takes every name.
    """
    return [path for path in _matching(folder, _FOLDER, name) if path.is_dir() and not path.is_symlink()]


def temporary_files(folder: Path, name: str | None = None) -> list[Path]:
    """Files there that are being written, or were when a run was killed; arguments as of `staged_folders`."""
    return [path for path in _matching(folder, _FILE, name) if path.is_file() and not path.is_symlink()]


def _matching(folder: Path, pattern: re.Pattern[str], name: str | None) -> list[Path]:
    found = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and name in (None, match[1]):
                found.append(path)
    return found


def is_held(path: Path) -> bool:
    """Whether a process works with that staging folder, temporary file or lock."""
    try:
        lock = os.open(_lock_of(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True  # or it lies on a file system that knows no locks
    finally:
        os.close(lock)
    return False


def remove_unheld(path: Path) -> bool:
    """Whether that staging folder, temporary file or lock was in nobody's use and is gone now."""
    try:
        lock = os.open(_lock_of(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path)
    except OSError:
        return False
    finally:
        os.close(lock)
    return not os.path.lexists(path)


def remove(path: Path) -> None:
    """Removes a staging folder, its lock last, or a file; what was moved out of a folder half is moved back first."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    with suppress(OSError):
        _take_back(path)
        for entry in path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != LOCK:
                entry.unlink()
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()


def _take_back(staging: Path) -> None:
    try:
        names = read_json(staging / MOVED)
    except FileNotFoundError:
        return
    if os.path.lexists(staging / names[-1]):  # else the last one was moved, so all of it is published
        for name in names:
            if not os.path.lexists(staging / name) and os.path.lexists(staging.parent / name):
                (staging.parent / name).rename(staging / name)
    (staging / MOVED).unlink()


def hold_new_folder(parent: Path, name: str) -> tuple[Path, int]:
    """A new staging folder, and the descriptor that holds its lock until it is closed."""
    while True:
        folder = parent / f".{name}.staging-{token_hex(4)}"
        folder.mkdir()
        with suppress(FileNotFoundError):
            lock = hold(folder / LOCK)
            if lock is not None:
                return folder, lock


def hold(path: Path) -> int | None:
    """The descriptor of a new file, locked; None if it was taken for a killed run's before the lock was on it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with suppress(OSError):  # a file system that knows no locks: nothing is removed there either
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if os.fstat(descriptor).st_nlink:
        return descriptor
    os.close(descriptor)
    return None


def _lock_of(path: Path) -> Path:
    return path / LOCK if path.is_dir() else path
