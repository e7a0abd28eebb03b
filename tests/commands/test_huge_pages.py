"""Large pages are asked for where that changes something, and the program is the same as before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_trt.commands.huge_pages import to_be_asked_for

NEW = (2, 36)
# Says what it was started with, once it was.
_PROGRAM = """
import os
from vlm_trt.commands.huge_pages import begin_again
begin_again({words!r})
print(os.environ.get('GLIBC_TUNABLES'))
"""


@pytest.mark.parametrize(
    ("kernel", "glibc", "tunables", "asked"),
    [
        ("always [madvise] never", NEW, "", True),
        ("always [madvise] never", NEW, "glibc.malloc.arena_max=1", True),
        ("always [madvise] never", NEW, "glibc.malloc.hugetlb=0", False),  # somebody has said no
        ("always [madvise] never", (2, 31), "", False),
        ("always [madvise] never", (0,), "", False),
        ("[always] madvise never", NEW, "", False),
        ("always madvise [never]", NEW, "", False),
        (None, NEW, "", False),
    ],
)
def test_where_it_is_asked_for(
    kernel: str | None, glibc: tuple[int, ...], tunables: str, asked: bool, tmp_path: Path
) -> None:
    if kernel is not None:
        (tmp_path / "enabled").write_text(kernel)
    assert to_be_asked_for(tunables, glibc, str(tmp_path / "enabled")) is asked


def said(words: list[str], **variables: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    program = [sys.executable, "-c", _PROGRAM.format(words=words)]
    done = subprocess.run(program, cwd=ROOT, env=clean | variables, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_command_that_answers_begins_again_once() -> None:
    kernel = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not kernel.exists() or "[madvise]" not in kernel.read_text():
        pytest.skip("the kernel of this machine gives large pages to all, or to nobody: nothing is asked for")
    assert said(["generate"]) == "glibc.malloc.hugetlb=1"
    assert said(["generate"], GLIBC_TUNABLES="glibc.malloc.arena_max=2") == (
        "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"
    )
    assert said(["generate"], GLIBC_TUNABLES="glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0"
    assert said(["export"]) == "None"
    assert said([]) == "None"
