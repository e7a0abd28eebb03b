"""One process at a time: the other one is told who it is, and a dead one is in nobody's way."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm_trt.bundle.errors import StorageError
from vlm_trt.bundle.lock import at_work

_WORKER = """
import sys
from pathlib import Path
from vlm_trt.bundle.lock import at_work
with at_work(Path(sys.argv[1])):
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, at work in the folder until its standard input ends."""
    command = [sys.executable, "-c", _WORKER, str(tmp_path), "one\x1b[31m two"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "at work\n"
    with running:
        yield running


def test_the_other_process_is_named(tmp_path: Path, worker: subprocess.Popen[str]) -> None:
    for _ in range(2):
        with pytest.raises(StorageError) as caught, at_work(tmp_path):
            pass
        said = str(caught.value)
        assert said.startswith(f"{tmp_path} is being worked on by process {worker.pid} on {os.uname().nodename} since ")
        assert re.search(r"\(-c .*two'?\); wait for it to end, or end it", said) and "\x1b" not in said
    worker.communicate("")
    assert worker.returncode == 0 and not list(tmp_path.iterdir())
    with at_work(tmp_path):
        pass


def test_a_killed_process_blocks_nobody(tmp_path: Path, worker: subprocess.Popen[str]) -> None:
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    (left,) = tmp_path.iterdir()
    with at_work(tmp_path):
        assert left.read_text().startswith(f"process {os.getpid()} on ")
    assert not left.exists()


def test_a_failure_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), at_work(tmp_path):
        raise KeyboardInterrupt
    with at_work(tmp_path):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".at-work").symlink_to(tmp_path / "precious")
    with pytest.raises(StorageError, match="symbolic links"), at_work(tmp_path):
        pass
    assert not (tmp_path / "precious").exists()
