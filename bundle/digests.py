"""sha256 of files, remembered by what the file system says of them, so that an unchanged 19 GB is hashed once.

Any write to a file changes its ctime, which no ordinary tool can set back; so size, mtime, ctime and inode together
stand for the content. `VLM_TRT_DIGEST_CACHE=off` hashes always.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.staging import replace_file

_BLOCK = 1 << 22
_MAX_ENTRIES = 4096
# A file changed within the clock's granularity before it is hashed could change again with the same times.
_SETTLED_NS = 2_000_000_000


def cache_folder() -> Path | None:
    """Where this user's machine keeps what only costs time to find out again; None without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlm-trt"
    except RuntimeError:  # as in many containers
        return None


def sha256_of(path: Path) -> str:
    """sha256 of a file's content, hexadecimal, read now."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class DigestCache:
    """Remembered digests; a damaged or unwritable cache file only costs time."""

    def __init__(self) -> None:
        root = cache_folder()
        self._enabled = root is not None and os.environ.get("VLM_TRT_DIGEST_CACHE", "on") != "off"
        self._path = (root or Path()) / "digests.json"
        self._known = self._load() if self._enabled else {}
        self._changed = False

    def digest(self, path: Path) -> str:
        """sha256 of the file, from memory where the file has not been touched since."""
        stamp = _stamp(path)
        if stamp in self._known:
            return self._known[stamp]
        digest = sha256_of(path)
        if self._enabled and stamp == _stamp(path):
            self.remember(path, digest)
        return digest

    def remember(self, path: Path, digest: str) -> None:
        """Stores a digest that was computed while the file was written."""
        stat = path.stat()
        if self._enabled and stat.st_ctime_ns + _SETTLED_NS < time.time_ns():
            self._known[_stamp(path)] = digest
            self._changed = True

    def save(self) -> None:
        """Writes what was learnt, all or nothing."""
        if not self._changed:
            return
        entries = dict(list(self._known.items())[-_MAX_ENTRIES:])
        with suppress(OSError, StorageError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(entries))
        self._changed = False

    def _load(self) -> dict[str, str]:
        try:
            raw = json.loads(self._path.read_text())
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(raw, dict):
            return {}
        return {key: value for key, value in raw.items() if isinstance(value, str) and len(value) == 64}


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
