"""One process at a time at work that takes long, and a sentence for the others that says who it is."""

import fcntl
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.staging import storage_errors

AT_WORK = ".at-work"
_LONGEST_COMMAND = 200  # characters


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """The folder's only worker, until the end.

    The lock is the system's: it ends with its process, however that ends, and what is written in its file is for
    readers.

    Raises:
        StorageError: another process is at work there; it is named. Or the folder cannot be written.
    """
    path = folder / AT_WORK
    with storage_errors(folder):
        lock = _locked(path)
    try:
        with storage_errors(folder):
            os.ftruncate(lock, 0)
            os.pwrite(lock, _myself().encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still locked
        os.close(lock)


def _locked(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 4096, 0).decode(errors="replace") or "another process"
            os.close(lock)
            raise StorageError(
                f"{path.parent} is being worked on by {holder}; wait for it to end, or end it, and run this again"
            ) from None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock)):
            return lock
        os.close(lock)  # its holder has ended meanwhile, and removed it


def _myself() -> str:
    """Process, host, when it began and what it was called as; nothing that could steer a terminal."""
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    shown = "".join(one if one.isprintable() else "�" for one in command)[:_LONGEST_COMMAND]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"process {os.getpid()} on {socket.gethostname()} since {now} ({shown})"
