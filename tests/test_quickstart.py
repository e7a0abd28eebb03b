"""scripts/quickstart: paths from any folder, nothing of a user's removed, what is there used again."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, ROOT

CASE = GOLDEN / "ntk-256"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The project with an environment that is made already, by whatever runs this test."""
    root = tmp_path / "project"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "quickstart", root / "scripts")
    (root / "scripts" / "environment").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/.."\n')
    (root / ".venv").symlink_to(ROOT / ".venv")
    for folder in ("examples", "bundle"):
        (root / folder).symlink_to(ROOT / folder)
    return root


def quickstart(root: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(root / "scripts" / "quickstart"), *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / ".links")},
    )  # fmt: skip


def test_own_checkpoint_and_picture_twice(root: Path, tmp_path: Path) -> None:
    """The first run plans and exports beside what a user has there; the second uses it."""
    shutil.copytree(CASE / "checkpoint", tmp_path / "mine")
    shutil.copy(CASE / "one-image" / "a.png", tmp_path / "photo.png")
    name = "mine-" + hashlib.sha256(f"{tmp_path / 'mine'}\n".encode()).hexdigest()[:8]
    notes = root / "quickstart" / name / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("a user's")
    first = quickstart(root, tmp_path, "mine", "photo.png", "What is this?")
    assert first.returncode == 0, first.stdout + first.stderr
    plan, export = first.stdout.index("$ vlm-trt plan"), first.stdout.index("$ vlm-trt export")
    assert plan < export < first.stdout.index("$ vlm-trt verify") < first.stdout.index("$ vlm-trt generate")
    assert f"quickstart/{name} was not made here from checkpoint and version as they are now; it stays" in first.stdout
    assert f"source {root}/.venv/bin/activate" in first.stdout
    second = quickstart(root, tmp_path, "mine", "photo.png", "What is this?")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "$ vlm-trt generate" in second.stdout and "vlm-trt export" not in second.stdout
    assert "$ vlm-trt verify" not in second.stdout
    assert notes.read_text() == "a user's" and list(notes.parent.iterdir()) == [notes]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["mine"], 2, "usage: scripts/quickstart [CHECKPOINT PICTURE PROMPT]"),
        (["mine", "text.png", "hi"], 1, "text.png"),
        (["gone", "photo.png", "hi"], 3, "gone is no folder; give that of a checkpoint"),
    ],
)
def test_refusals_come_before_any_work(
    root: Path, tmp_path: Path, arguments: list[str], code: int, sentence: str
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    shutil.copy(CASE / "one-image" / "a.png", tmp_path / "photo.png")
    done = quickstart(root, tmp_path, *arguments)
    assert done.returncode == code and sentence in done.stderr, done.stdout + done.stderr
    assert not (root / "quickstart").exists()
