"""Checkpoints as Hugging Face's cache holds them: by the cache's folder or the repository's name; downloaded if asked.

A snapshot's files are links to `blobs/` beside it. The network is used for a download alone.
Source: huggingface_hub, "Understand caching".
"""

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from vlm_trt.bundle.errors import CheckpointError, IncompatibleError, StorageError, UsageError
from vlm_trt.bundle.installation import how_to_install

_REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[\w-][\w./-]*", re.ASCII)
MAIN = "main"
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def checkpoint_folder(
    path: Path, *, download: bool = False, revision: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Path:
    """The folder of a checkpoint that was named in any of these ways: itself, a repository of the cache
    (`models--Qwen--Qwen-VL-Chat`), or the repository's name (`Qwen/Qwen-VL-Chat`).

    Args:
        path: what was given. A folder that is there is never a repository's name.
        download: gets a named repository, or what of it is not in the cache.
        revision: a branch, a tag or a commit; None: main.
        say: told of a download.
    Raises:
        CheckpointError: the cache has no such repository or revision, or a link leads out of it.
        UsageError: a revision or a download of something that is no repository's name.
        IncompatibleError: a download without huggingface_hub.
        StorageError: a download that failed.
    """
    name = str(path)
    if download and not path.exists() and _REPOSITORY.fullmatch(name):
        return _require_inside(_downloaded(name, revision or MAIN, say))
    if download:
        raise UsageError(f"--download gets a repository by its name, OWNER/NAME, and {path} is none")
    if path.is_dir():
        if (path / "snapshots").is_dir() and path.name.startswith("models--"):
            return _require_inside(_snapshot(path, revision))
        if revision is not None:
            raise UsageError(f"--revision is of a repository in the cache, and {path} is a folder; leave it out")
        return _require_inside(path) if _repository_of(path) is not None else path
    if not _REPOSITORY.fullmatch(name):
        return path  # whoever reads it says that it is not there
    repository = cache_folder() / f"models--{name.replace('/', '--')}"
    if not repository.is_dir():
        raise CheckpointError(
            f"{path} is no folder, and {cache_folder()} has no repository of that name; give the folder of a "
            "checkpoint, or get it with --download"
        )
    return _require_inside(_snapshot(repository, revision))


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where repositories lie: as huggingface_hub has it."""
    if found := environment.get("HF_HUB_CACHE"):
        return Path(found).expanduser()
    home = environment.get("HF_HOME") or Path(environment.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(home).expanduser() / "hub"


def _snapshot(repository: Path, revision: str | None) -> Path:
    """The snapshot of a revision, or the only one there is."""
    snapshots = sorted(one.name for one in (repository / "snapshots").iterdir() if one.is_dir())
    wanted = revision or MAIN
    if not _REVISION.fullmatch(wanted) or ".." in wanted:
        raise UsageError(f"{wanted!r} is no revision; give a branch, a tag or a commit")
    reference = repository / "refs" / wanted
    if reference.is_file():
        wanted = reference.read_text(encoding="utf-8", errors="replace").strip()
    if wanted in snapshots:
        return repository / "snapshots" / wanted
    if revision is None and len(snapshots) == 1:
        return repository / "snapshots" / snapshots[0]
    raise CheckpointError(
        f"{repository} has no snapshot of {revision or MAIN} (it has {', '.join(snapshots) or 'none'}); name one with "
        "--revision, or get it with --download"
    )


def _repository_of(folder: Path) -> Path | None:
    """The repository that a folder is a snapshot of."""
    above = folder.absolute().parent
    return above.parent if above.name == "snapshots" and above.parent.name.startswith("models--") else None


def _require_inside(folder: Path) -> Path:
    """
    Raises:
        CheckpointError: a file of the snapshot is a link to somewhere outside its repository, or to nothing.
    """
    repository = _repository_of(folder)
    assert repository is not None
    inside = repository.resolve()
    for one in sorted(folder.iterdir()):
        if not one.is_symlink():
            continue
        if not one.resolve().is_relative_to(inside):
            raise CheckpointError(
                f"{one} is a link to {one.resolve()}, out of the cache of its repository; do not use this checkpoint"
            )
        if not one.exists():
            raise CheckpointError(f"{one} is a link to a file that is not there; download the checkpoint again")
    return folder


def _downloaded(name: str, revision: str, say: Callable[[str], None]) -> Path:
    """The snapshot of that revision, got as far as it is not in the cache; it is called after the commit."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise IncompatibleError(f"--download needs huggingface_hub; run: {how_to_install('hub')}") from None
    try:
        about = HfApi().model_info(name, revision=revision)
        files = [one.rfilename for one in about.siblings or ()]
        say(f"download {name} at {about.sha}")
        folder = snapshot_download(name, revision=about.sha, allow_patterns=_patterns(files))
    except Exception as error:  # of requests, httpx or its own, by its version
        stored = isinstance(error, OSError) and error.errno in _NO_PLACE
        raise StorageError(
            f"{name} at {revision} cannot be {'stored' if stored else 'downloaded'} ({_first_line(error)}); "
            f"{'make room' if stored else 'see to the name, the network and HF_TOKEN'}, or give a folder"
        ) from None
    return Path(folder)


def _patterns(files: list[str]) -> list[str]:
    """What of a repository an export reads: weights in one form, and the small files."""
    weights = "*.safetensors" if any(one.endswith(".safetensors") for one in files) else "pytorch_model*.bin"
    return [weights, "*.json", "*.tiktoken"]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
