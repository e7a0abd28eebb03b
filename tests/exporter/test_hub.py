"""Checkpoints of Hugging Face's cache: by folder and by name, links that stay inside, a download that was asked for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.exporter.checkpoints import single
from vlm_trt.bundle.errors import CheckpointError, UsageError
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.hub import cache_folder, checkpoint_folder

NAME, COMMIT, OLDER = Path("tiny/Qwen-VL.Chat"), "0123456789abcdef0123456789abcdef01234567", "f" * 40


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return single(tmp_path / "checkpoint")


@pytest.fixture
def repository(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checkpoint as huggingface_hub caches it, HF_HOME beside it."""
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = cached(tmp_path / "home" / "hub" / "models--tiny--Qwen-VL.Chat", checkpoint)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return folder


def cached(repository: Path, checkpoint: Path, commit: str = COMMIT) -> Path:
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(exist_ok=True)
    for path in checkpoint.iterdir():
        blob = repository / "blobs" / sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return repository


def test_a_repository_by_folder_snapshot_and_name(repository: Path, checkpoint: Path) -> None:
    snapshot = repository / "snapshots" / COMMIT
    for given in (repository, snapshot, NAME):
        assert checkpoint_folder(given) == snapshot
    assert Checkpoint(snapshot).shapes() == Checkpoint(checkpoint).shapes()
    assert checkpoint_folder(checkpoint) == checkpoint  # a folder is itself


def test_a_folder_of_that_name_comes_first(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir(parents=True)
    assert checkpoint_folder(NAME) == NAME


def test_revisions(repository: Path, checkpoint: Path) -> None:
    cached(repository, checkpoint, OLDER)
    (repository / "refs" / "v1").write_text(f"{OLDER}\n")
    for revision in ("v1", OLDER):
        assert checkpoint_folder(NAME, revision=revision).name == OLDER
    assert checkpoint_folder(NAME).name == COMMIT
    with pytest.raises(CheckpointError, match=f"has no snapshot of v2 .it has {COMMIT}, {OLDER}.; name one with"):
        checkpoint_folder(NAME, revision="v2")
    for revision in ("../../x", "/etc", ""):
        with pytest.raises(UsageError, match="is no revision; give a branch, a tag or a commit"):
            checkpoint_folder(NAME, revision=revision or "..")
    with pytest.raises(UsageError, match="--revision is of a repository in the cache, and .* is a folder"):
        checkpoint_folder(checkpoint, revision="v1")


def test_what_the_cache_does_not_have(repository: Path) -> None:
    with pytest.raises(CheckpointError, match="other/model is no folder, and .*hub has no repository of that name"):
        checkpoint_folder(Path("other/model"))
    assert checkpoint_folder(Path("nothing")) == Path("nothing")  # no name of a repository


def test_links_that_lead_out_are_refused(repository: Path, checkpoint: Path) -> None:
    config = repository / "snapshots" / COMMIT / "config.json"
    blob = config.resolve()
    config.unlink()
    config.symlink_to(checkpoint / "config.json")
    with pytest.raises(CheckpointError, match="config.json is a link to .*, out of the cache of its repository"):
        checkpoint_folder(NAME)
    config.unlink()
    config.symlink_to(f"../../blobs/{blob.name}")
    blob.unlink()
    with pytest.raises(CheckpointError, match="config.json is a link to a file that is not there; download"):
        checkpoint_folder(repository)


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path.home() / ".cache" / "huggingface" / "hub")),
    ],
)
def test_where_the_cache_lies(environment: dict[str, str], folder: str) -> None:
    assert cache_folder(environment) == Path(folder)


class Hub(ThreadingHTTPServer):
    """What the Hub answers about one repository."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.checkpoint, self.asked = checkpoint, list[str]()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        names = sorted(one.name for one in self.server.checkpoint.iterdir())
        if path in (f"/api/models/{NAME}/revision/{one}" for one in ("main", COMMIT)):
            about = {"id": str(NAME), "sha": COMMIT, "siblings": [{"rfilename": name} for name in (*names, "x.pth")]}
            self._send(json.dumps(about).encode(), body=body)
        elif path == f"/api/models/{NAME}/tree/{COMMIT}":
            sizes = {one.name: one.stat().st_size for one in self.server.checkpoint.iterdir()} | {"x.pth": 9}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            self._send(json.dumps(tree).encode(), body=body)
        elif path.startswith(f"/{NAME}/resolve/{COMMIT}/") and path.rpartition("/")[2] in names:
            self._send((self.server.checkpoint / path.rpartition("/")[2]).read_bytes(), body=body)
        else:
            self.send_error(404)

    def _send(self, data: bytes, *, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    server = Hub(checkpoint)
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def exported(hub: Hub | None, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    endpoint = "http://127.0.0.1:9" if hub is None else f"http://127.0.0.1:{hub.server_port}"
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    line = [sys.executable, "-m", "vlm_trt.cli", "export", *map(str, arguments), "--precision", "fp32"]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, check=False)


def test_a_download_is_of_a_commit_and_the_bundle_says_of_which(hub: Hub, tmp_path: Path) -> None:
    home, bundle = tmp_path / "home", tmp_path / "bundle"
    without = exported(hub, home, NAME, bundle)
    assert without.returncode == 3 and "get it with --download" in without.stderr and not hub.asked
    done = exported(hub, home, NAME, bundle, "--download")
    assert done.returncode == 0, done.stderr
    assert f"download {NAME} at {COMMIT}" in done.stderr
    assert Path(Bundle.open(bundle).manifest.source.checkpoint).name == COMMIT
    assert not any(path.endswith("x.pth") for path in hub.asked)
    asked = len(hub.asked)
    again = exported(hub, home, NAME, tmp_path / "again")  # without the network
    assert again.returncode == 0 and len(hub.asked) == asked, again.stderr


def test_downloads_that_fail_say_why(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    for where, name, code, sentence in (
        (hub, "tiny/other", 9, "tiny/other at main cannot be downloaded ("),
        (None, NAME, 9, f"{NAME} at main cannot be downloaded ("),
        (hub, checkpoint, 2, "--download gets a repository by its name, OWNER/NAME, and"),
    ):
        done = exported(where, tmp_path / "home", name, tmp_path / "bundle", "--download")
        assert done.returncode == code and sentence in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (tmp_path / "bundle").exists()
