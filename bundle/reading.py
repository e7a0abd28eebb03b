"""Files that others may have written, read so that nothing hangs: only a regular file is opened, and of bounded size.

What is wrong with a file is an OSError whose `strerror` says it, and what is wrong with its content a ValueError; the
caller, who knows what the file is for, makes the sentence.
"""

import errno
import json
import os
import stat
import tomllib
from enum import Enum
from pathlib import Path
from typing import Any, BinaryIO

SMALL_BYTES = 64 << 20  # configs, manifests, reports, profiles, recipes
LARGE_BYTES = 1 << 30  # what grows with a user's questions
_MOST_DIGITS = 1000  # of a whole number; beyond 4300 Python itself refuses to read or print one

_KINDS = (
    (stat.S_ISDIR, errno.EISDIR, "it is a folder"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a named pipe, no regular file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device, no regular file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device, no regular file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket, no regular file"),
)


def require_regular(path: Path) -> os.stat_result:
    """What the system says of a file, links followed.

    Raises:
        OSError: it is not there, or no regular file: a folder, a named pipe, a device, a socket.
    """
    try:
        found = path.stat()
    except ValueError:  # a NUL in the name
        raise OSError(errno.EINVAL, "its name holds a NUL character", str(path)) from None
    _require_regular(found, path)
    return found


def open_file(path: Path, buffering: int = -1) -> BinaryIO:
    """A regular file opened for reading; anything else is refused before it is opened.

    Raises:
        OSError: as `require_regular`, or it may not be read.
    """
    require_regular(path)
    # What takes the file's place at this moment cannot block either, and is looked at again.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=buffering)


def read_bytes(path: Path, most_bytes: int = SMALL_BYTES) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_file`, or it has more bytes than that.
    """
    with open_file(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it has more than {most_bytes >> 20} MiB", str(path))
    return content


def read_json(path: Path, most_bytes: int = SMALL_BYTES) -> Any:
    """The values of a JSON file.

    Raises:
        OSError: as `read_bytes`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_bytes(path, most_bytes))


def parse_json(text: str | bytes) -> Any:
    """The values of a JSON text in UTF-8.

    Raises:
        ValueError: it is no JSON, is nested too deep, names a key twice, or holds a number of absurd length.
    """
    try:
        decoded = text.decode() if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_unique, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        OSError: as `read_bytes`.
        ValueError: it is no TOML, or is nested too deep.
    """
    try:
        return tomllib.loads(read_bytes(path).decode())
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def shown(value: Any, longest: int = 40) -> str:
    """A value for a sentence: short, and nothing in it that could steer a terminal."""
    try:
        text = repr(value.value if isinstance(value, Enum) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a value nested too deep
        text = f"{type(value).__name__} too long to be shown"
    return text if len(text) <= longest else f"{text[:longest]}…"


def _require_regular(found: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(found.st_mode):
        number, what = next(
            ((number, what) for is_kind, number, what in _KINDS if is_kind(found.st_mode)),
            (errno.EINVAL, "it is no regular file"),
        )
        raise OSError(number, what, str(path))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ: of two equal ones, JSON readers drop the first in silence."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} stands twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
