"""sha256 of files; that of a large one is remembered by what the file system says of it, so that 19 GB are read once.

Small files are hashed whenever they are asked about. For a large one, size, mtime, ctime and inode stand for the
content: a write changes its ctime, which no ordinary tool can set back. A store through a mapping does so only to a
page that is not waiting to be written already, so the file is synced before it is hashed; and only on file systems that
keep the promise afterwards. `VLM_TRT_DIGEST_CACHE=off` hashes always.
"""

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.reading import open_file, read_json
from vlm_trt.bundle.staging import replace_file, sync

MOUNTS = Path("/proc/self/mounts")
_BLOCK = 1 << 22
# Hashed in tens of milliseconds, so nothing of it is remembered.
_SMALL_BYTES = 16 << 20
# Where a store to a synced page changes the file's times. In memory file systems it does not; of network ones the
# times are another machine's. Seen on ext4, by the source of Linux so on the others.
_FILE_SYSTEMS = {"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"}
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
    with open_file(path) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class DigestCache:
    """Remembered digests of large files; a damaged or unwritable cache file only costs time."""

    def __init__(self) -> None:
        root = cache_folder()
        self._enabled = root is not None and os.environ.get("VLM_TRT_DIGEST_CACHE", "on") != "off"
        self._path = (root or Path()) / "digests.json"
        self._known = self._load() if self._enabled else {}
        self._changed = False

    def digest(self, path: Path) -> str:
        """sha256 of the file, from memory where a large one has not been touched since."""
        if not self._enabled or path.stat().st_size <= _SMALL_BYTES or not _tells_changes(path):
            return sha256_of(path)
        stamp = _stamp(path)
        if stamp in self._known:
            return self._known[stamp]
        try:
            sync(path)
        except OSError:
            return sha256_of(path)
        stamp = _stamp(path)
        digest = sha256_of(path)
        self._remember(path, stamp, digest)
        return digest

    def _remember(self, path: Path, stamp: str, digest: str) -> None:
        """Stores a digest that was computed after that stamp was taken, unless something touched the file since."""
        if stamp == _stamp(path) and path.stat().st_ctime_ns + _SETTLED_NS < time.time_ns():
            self._known[stamp] = digest
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
            raw = read_json(self._path)
        except (OSError, ValueError):
            return {}
        if not isinstance(raw, dict):
            return {}
        return {key: value for key, value in raw.items() if isinstance(value, str) and len(value) == 64}


def _stamp(path: Path) -> str:
    stat = path.stat()
    return f"synced:{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"


def _tells_changes(path: Path) -> bool:
    """Whether the file lies on a file system whose times tell every change."""
    place, best = str(path.resolve()), ("", "")
    try:
        for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            _, folder, kind = line.split(" ")[:3]
            folder = folder.replace("\\040", " ")
            if (place == folder or place.startswith(folder.rstrip("/") + "/")) and len(folder) >= len(best[0]):
                best = folder, kind
    except (OSError, ValueError):
        return False
    return best[1] in _FILE_SYSTEMS
