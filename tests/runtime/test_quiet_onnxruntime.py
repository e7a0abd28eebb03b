"""ONNX Runtime keeps no records of what is done with it, where its wheels would begin to."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bundle.test_installation import PACKAGE
from tests.conftest import ROOT
from tests.test_layout import modules_of

ANSWER = "from vlm_trt import load\nmodel = load({!r}, backend='cpu')\nmodel.generate('What?')\n"


def left_behind(code: str, home: Path) -> list[Path]:
    """What a process leaves in a home that was empty."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "CI" and not name.startswith("ORT_")}
    folders = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
    told = {**folders, "VLM_TRT_DIGEST_CACHE": "off"}  # our own hashes are no record of ONNX Runtime's
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=kept | told, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [path for path in home.rglob("*") if path.is_file()]


def test_an_answer_leaves_nothing_below_the_home(verified: Callable[..., Path], tmp_path: Path) -> None:
    assert left_behind(ANSWER.format(str(verified("ntk-256"))), tmp_path / "home") == []


def test_the_wheel_would_leave_something(tmp_path: Path) -> None:
    """The test above can fail: imported as it comes, this ONNX Runtime writes."""
    if not left_behind("import onnxruntime", tmp_path / "home"):
        pytest.skip("this build of ONNX Runtime keeps no records of its own")


def test_nothing_else_imports_it() -> None:
    for path in PACKAGE:
        if path.name != "quiet_onnxruntime.py":
            assert "onnxruntime" not in {name.split(".")[0] for name in modules_of(path)}, path
