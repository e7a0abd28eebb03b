"""Ctrl-C: one line and exit code 130, wherever it strikes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, ROOT

# Runs a command, and is struck as the terminal would do it: when `place` is first called, or while it is imported.
_STRUCK = """
import os, signal, sys
from importlib.abc import MetaPathFinder
import vlm_trt.cli as cli

def strike():
    os.kill(os.getpid(), signal.SIGINT)

class Struck(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            try:
                strike()
                import time; time.sleep(1)
            except BaseException as error:
                if {lost!r}:
                    raise ImportError("initialization failed")  # as libraries in C have it
                raise
sys.meta_path.insert(0, Struck())
cli.main({words!r})
"""


@pytest.mark.parametrize(
    ("module", "lost", "words"),
    [
        ("torch", False, ["export", "CHECKPOINT", "BUNDLE"]),
        ("torch.onnx", True, ["export", "CHECKPOINT", "BUNDLE"]),
        ("vlm_trt.commands.inspect", False, ["inspect", "BUNDLE"]),
        ("vlm_trt.commands.doctor", True, ["doctor"]),
        ("onnxruntime", False, ["generate", "BUNDLE", "hi"]),
        ("onnx", False, ["build", "BUNDLE", "--backend", "tensorrt-rtx", "--target", "sm89"]),
    ],
)
def test_while_something_is_imported(
    module: str, lost: bool, words: list[str], verified: Callable[..., Path], tmp_path: Path
) -> None:
    given = {"CHECKPOINT": str(GOLDEN / "ntk-256" / "checkpoint"), "BUNDLE": str(verified("ntk-256"))}
    if words[0] == "export":
        given["BUNDLE"] = str(tmp_path / "bundle")
    code = _STRUCK.format(module=module, lost=lost, words=[given.get(word, word) for word in words])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (130, ["vlm-trt: interrupted"]), done.stderr
    assert "Traceback" not in done.stderr and "Error" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_while_a_graph_is_traced_in_a_process_of_its_own(tmp_path: Path) -> None:
    """All of a terminal's processes hear it: the child must not say what it was at, and no staging folder stays."""
    words = ["export", str(GOLDEN / "ntk-256" / "checkpoint"), str(tmp_path / "bundle"), "--precision", "fp32"]
    code = (
        "import vlm_trt.exporter.graph_files as files, vlm_trt.cli as cli\n"
        f"if __name__ == '__main__':\n    files.AHEAD_ABOVE_BYTES = 0\n    cli.main({words!r})"
    )
    program = tmp_path / "program.py"
    program.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(program)], stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT / '.links'}:{ROOT}"},
    ) as running:  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".bundle.staging-*/graphs/fp32/*.weights")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(running.pid, signal.SIGINT)
        try:
            _, said = running.communicate(timeout=60)
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
    assert (running.returncode, said.splitlines()[-1]) == (130, "vlm-trt: interrupted"), said
    assert "Traceback" not in said, said
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


def test_a_closed_stream_is_not_given_to_the_next_file(verified: Callable[..., Path]) -> None:
    """A shell closes standard input: a sentence; and the standard errors: what libraries write there goes nowhere."""
    bundle = str(verified("ntk-256"))
    for words in (["generate", bundle, "-"], ["chat", bundle]):
        command = [sys.executable, "-m", "vlm_trt.cli", *words]
        done = subprocess.run(["sh", "-c", '"$@" <&-', "sh", *command], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr == "vlm-trt: standard input is closed, and this reads from it; give it a file or a pipe\n"
    look = "import os, sys; import vlm_trt.cli as cli\ntry: cli.main(['--version'])\nfinally: os.fstat(2)"
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-c", look], cwd=ROOT, capture_output=True)
    assert done.returncode == 0
