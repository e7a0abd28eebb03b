"""Test equipment: work that is ended before its n-th change of the file system, as by SIGKILL."""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_KILLED = 9


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Whether the work, done by a child of this process, was ended before its change number `step`, from 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child runs no thread but this one
        child = os.fork()
    if not child:
        _work_until(step, work)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, _KILLED), "the work failed, see its traceback"
    return code == _KILLED


def kills(prepare: Callable[[int], Callable[[], object]]) -> Iterator[int]:
    """Kills at every step of what `prepare` returns for it, until there is none left; yields after each."""
    for step in count(1):
        if not killed_at(step, prepare(step)):
            assert step > 3, "nothing was killed"
            return
        yield step


def _work_until(step: int, work: Callable[[], object]) -> None:
    left = step

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _CHANGES or (event == "open" and arguments[2] & _WRITING):
            left -= 1
            if left == 0:
                os._exit(_KILLED)

    try:
        sys.addaudithook(watch)
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
