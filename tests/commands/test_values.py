"""What options and arguments may be: refused in a sentence, before anything is opened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.runs import vlm_trt
from tests.conftest import ROOT

HUGE = "9" * 30


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", "b", "--ram-gib", "nan"], "nan is no finite number"),
        (["plan", "b", "--disk-gib", "inf"], "inf is not in the range 0<x<=1048576"),
        (["plan", "b", "--max-batch", HUGE], f"{HUGE} is not in the range 1<=x<=1024"),
        (["export", "c", "b", "--max-seq-tokens", HUGE], f"{HUGE} is not in the range 64<=x<=1048576"),
        (["export", "c", "b", "--max-images", "9" * 5000], "is not a valid integer"),
        (["build", "b", "--workspace-gib", "inf"], "inf is not in the range 0<x<=1048576"),
        (["build", "b", "--workspace-gib", "1e300"], "1e+300 is not in the range 0<x<=1048576"),
        (["build", "b", "--target", ","], "',' names nothing; write names with commas: sm89,sm120"),
        (["profile", "b", "--batch", ""], "'' lists no number; write them with commas: 1,2,4"),
        (["profile", "b", "--batch", ","], "',' lists no number"),
        (["profile", "b", "--batch", "1,two"], "'two' is not a valid integer"),
        (["profile", "b", "--prompt-tokens", HUGE], f"{HUGE} is not in the range 1<=x<=1048576"),
        (["profile", "b", "--least-agreement", "nan"], "nan is no finite number"),
        (["profile", "b", "--allowed", "nan"], "nan is no finite number"),
        (["quantize", "b", "--recipe", "int8", "--max-drop", "nan"], "nan is no finite number"),
        (["verify", "b", "--max-drop", "nan"], "nan is no finite number"),
        (["evaluate", "b", "--data", "synthetic", "--count", "10000000"], "10000000 is not in the range 1<=x<=10000"),
        (["evaluate", "b", "--data", "synthetic", "--seed", HUGE], "is not in the range"),
        (["generate", "b", "hi", "--threads", "10000"], "10000 is too many for"),
        (["generate", "b", "hi", "--threads", HUGE], f"{HUGE} is too many for"),
        (["generate", "b", "hi", "--temperature", "nan"], "temperature is nan; it must be"),
        (["generate", "b", "hi", "--temperature", "-1"], "temperature is -1.0; it must be"),
        (["generate", "b", "hi", "--top-p", "5"], "top_p is 5.0; it must be above 0 and at most 1"),
        (["generate", "b", "hi", "--top-k", "-1"], "top_k is -1; it must be"),
        (["generate", "b", "hi", "--repetition-penalty", "0"], "repetition_penalty is 0.0; it must be"),
        (["generate", "b", "hi", "--seed", HUGE], "seed is a number of more than 20 digits; it must be"),
        (["generate", "b", "hi", "--max-new-tokens", "0"], "0 is not in the range"),
        (["generate", "b\0", "hi"], "b␀ holds a NUL character"),
        (["generate", "b\udcff", "hi"], "b\\xff is no UTF-8 text; convert it, or rename the file or folder"),
        (["generate", "b", "hi", "--stop", "\udcff"], "\\xff is no UTF-8 text"),
        (["evaluate", "b", "--data", "\udcff"], "\\xff is no UTF-8 text"),
        (["export", "c", "~nosuchuser/b"], "~nosuchuser/b: there is no such user; write ./~nosuchuser/b for a name"),
        (["inspect", ""], "it is empty; name a file or folder"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_a_sentence(words: list[str], sentence: str) -> None:
    """None of these folders is there: the value is looked at first."""
    done = vlm_trt(*words)
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr.splitlines()[-1], done.stderr


def test_bytes_that_are_no_text_come_from_a_shell(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlm_trt.cli", "inspect", os.fsencode(tmp_path) + b"/\xff"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "\\xff is no UTF-8 text; convert it, or rename" in done.stderr


def test_a_home_folder_that_the_shell_left_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--draw=~/found.png` and the like."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"{tmp_path}/gone is not a folder" in vlm_trt("inspect", "~/gone").stderr
