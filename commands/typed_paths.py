"""Paths as a person types them at a prompt: plain, quoted, with escaped blanks, dropped from a file manager, completed
by the tab key."""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vlm_trt.bundle.errors import UsageError


def typed_paths(typed: str, command: str = "/image") -> list[Path]:
    """The files that a line of typing names, one or several.

    A path that is there as it was typed is that one, blanks and quotes and all; else quotes and backslashes mean what
    they mean to a shell, and addresses that begin with file:// are paths.

    Raises:
        UsageError: nothing, an open quote, or a home folder of nobody.
    """
    if not typed:
        raise UsageError(f"{command} needs the path of a {'video' if command == '/video' else 'picture'}")
    whole = _expanded(typed)
    with suppress(OSError, ValueError):  # too long, or with a NUL: said by whoever opens it
        if whole.exists():
            return [whole]
    try:
        words = shlex.split(typed)
    except ValueError:
        raise UsageError(f"{typed} has a quote or a backslash at its end that nothing closes; close it") from None
    if len(words) > 1 and not any(mark in typed for mark in "'\"\\") and not all(_there(word) for word in words):
        return [whole]  # one path with blanks in it, which is not there
    return [_expanded(word) for word in words]


def completed(typed: str) -> list[str]:
    """All that the beginning of a path may become: a folder ends with a slash; blanks and quotes are written behind
    backslashes, or as they are within the quotes that the beginning opens."""
    quote = typed[:1] if typed[:1] in ("'", '"') else ""
    begun = typed[1:] if quote else re.sub(r"\\(.?)", r"\1", typed)
    folder, name = os.path.split(begun)
    try:
        found = sorted(os.scandir(_expanded(folder or ".")), key=lambda entry: entry.name)
    except (OSError, ValueError, UsageError):
        return []
    paths = []
    for entry in found:
        if not entry.name.startswith(name) or (entry.name.startswith(".") and not name):
            continue
        path = os.path.join(folder, entry.name)  # noqa: PTH118  # a Path would lose "./"
        if quote and (quote in path or "\\" in path):
            continue
        written = quote + path if quote else re.sub(r"([\s'\"\\])", r"\\\1", path)
        paths.append(written + ("/" if entry.is_dir() else quote))
    return paths


def complete_with(lines: Callable[[str], Sequence[str]]) -> None:
    """The tab key offers those lines at every prompt from now on, where this Python has readline.

    Args:
        lines: from what is typed to all lines that it may become.
    """
    try:
        import readline
    except ImportError:
        return

    def offered(typed: str, number: int) -> str | None:
        found = lines(typed)
        return found[number] if number < len(found) else None

    readline.set_completer(offered)
    readline.set_completer_delims("\n")  # the whole line is completed: a path may have blanks
    # macOS's Python stands on libedit, which is told in words of its own.
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")


def _expanded(typed: str) -> Path:
    """
    Raises:
        UsageError: a home folder of nobody.
    """
    if typed.startswith("file://"):
        typed = unquote(urlsplit(typed).path)
    try:
        return Path(typed).expanduser()
    except RuntimeError:
        raise UsageError(f"{typed} begins with the home folder of a user that this machine does not have") from None


def _there(word: str) -> bool:
    with suppress(OSError, ValueError, UsageError):
        return _expanded(word).exists()
    return False
