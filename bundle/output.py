"""Files that a user names: asked about before the work whose result they take, and never left half written.

A regular file is replaced whole, where links lead; a device or a pipe is written to, and `-` is standard output. Files
of a bundle are written with `staging.replace_file`, which follows no link out of it.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TextIO

from vlm_trt.bundle.errors import StorageError, UsageError
from vlm_trt.bundle.staging import encoded, sync, temporary_file
from vlm_trt.bundle.stale import remove_unheld, temporary_files

STANDARD_OUTPUT = Path("-")


def require_output(path: Path, read: Iterable[Path] = ()) -> None:
    """Asked before the work whose result goes there; nothing is changed.

    Args:
        path: the file to write.
        read: files that the work is about, which stay as they are.
    Raises:
        UsageError: it is one of `read`.
        StorageError: it is a folder, a disk or a socket, its folder is not there, or it may not be written.
    """
    for source in read:
        if _same_file(path, source):
            raise UsageError(f"{path} would overwrite {source}, which is read; choose another file to write")
    with _refusals(path):
        write = _writer(path)
        if path != STANDARD_OUTPUT and path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if isinstance(write, partial) and write.func is _replace:
            with temporary_file(*write.args):
                pass


def write_output(path: Path, content: str | bytes) -> None:
    """Writes the file; where that fails, as on a full disk, it is as it was before, or still not there.

    Args:
        path: one that `require_output` has let pass.
        content: text is written as UTF-8.
    Raises:
        StorageError: it cannot be written.
    """
    with _refusals(path):
        _writer(path)(encoded(content))


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file of our own beside an output, and sees it on the disk: what was done need not be again.

    Raises:
        StorageError: it cannot be written.
    """
    with _refusals(path), path.open("ab") as file:
        file.write(encoded(line + "\n"))
        file.flush()
        os.fsync(file.fileno())


def require_output_folder(folder: Path, names: Sequence[str], read: Iterable[Path] = ()) -> None:
    """As `require_output`, for files of a folder that is made when they are written.

    Raises:
        UsageError: one of the files is one of `read`.
        StorageError: it is no folder, or one of the files cannot be written.
    """
    if folder == STANDARD_OUTPUT:
        raise StorageError("- is standard output, which takes one file, and these are several; name a folder")
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise StorageError(f"{folder} cannot be written: {there} is no folder; name another")
    for name in names:
        require_output(there / name if there == folder.absolute() else there / folder.name, read)


def write_outputs(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Writes files into a folder, each whole or not at all, in their order.

    Raises:
        StorageError: one cannot be written.
    """
    with _refusals(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, content in files.items():
            write_output(folder / name, content)
    finally:
        with suppress(OSError):
            folder.rmdir()  # if nothing came into it


def _same_file(target: Path, source: Path) -> bool:
    """By path, by a link of either kind, or on a disk that ignores case; a device takes no harm."""
    try:
        return target.samefile(source) and target.is_file()
    except (OSError, ValueError):  # there is no such target yet, or it cannot be one
        return False


def _writer(path: Path) -> Callable[[bytes], None]:
    """What writes there."""
    try:
        found = None if path == STANDARD_OUTPUT else path.stat()
    except FileNotFoundError:
        return partial(_replace, _target(path))
    if found is None or _is_open_as(found, 1):
        return partial(_to_stream, sys.stdout)
    if _is_open_as(found, 2):
        return partial(_to_stream, sys.stderr)
    if stat.S_ISREG(found.st_mode):
        return partial(_replace, _target(path))
    if stat.S_ISCHR(found.st_mode) or stat.S_ISFIFO(found.st_mode):
        return partial(_write_through, path)
    raise OSError(0, "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is a disk or a socket")


def _target(path: Path) -> Path:
    """Where links lead."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise OSError(0, f"{target.parent} is no folder" if target.parent.exists() else f"there is no {target.parent}")
    return target


def _is_open_as(found: os.stat_result, descriptor: int) -> bool:
    """Whether that is what a shell has opened for us: replacing it would lose what was printed."""
    try:
        return os.path.samestat(found, os.fstat(descriptor))
    except OSError:
        return False


def _to_stream(stream: TextIO | None, data: bytes) -> None:
    if stream is None:
        raise OSError(errno.EBADF, "it is closed")
    stream.flush()
    stream.buffer.write(data)
    stream.flush()


def _replace(target: Path, data: bytes) -> None:
    """The file by one rename, with the owner and the permissions that it had."""
    for left in temporary_files(target.parent, target.name):
        remove_unheld(left)
    with temporary_file(target) as (temporary, descriptor):
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        if target.exists():
            known = target.stat()
            with suppress(OSError):
                os.fchown(descriptor, known.st_uid, known.st_gid)
            with suppress(OSError):
                os.fchmod(descriptor, stat.S_IMODE(known.st_mode))
        os.fsync(descriptor)
        try:
            temporary.replace(target)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _write_through(target, data, os.O_TRUNC)  # mounted by itself, as containers do
        sync(target.parent)


def _write_through(path: Path, data: bytes, flags: int = 0) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_NOCTTY | flags), "wb") as file:
        file.write(data)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; name another file") from error
