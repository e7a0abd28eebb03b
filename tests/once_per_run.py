"""Work that the workers of a run share: whoever needs it first does it, and nobody does it again."""

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest


def run_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, which all workers have."""
    base = factory.getbasetemp()
    return base.parent if base.name.startswith("popen-") else base


@contextmanager
def alone(name: Path) -> Iterator[None]:
    """While it lasts, no other worker is in it with that name."""
    with name.with_name(f"{name.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remembered(folder: Path, work: Callable[..., bytes], asks: Callable[..., object]) -> Callable[..., bytes]:
    """The same function, called once per run for arguments of which `asks` makes something that prints alike."""

    @wraps(work)
    def asked(*given: Any) -> bytes:
        file = folder / hashlib.sha256(repr(asks(*given)).encode()).hexdigest()[:16]
        if not file.exists():
            with alone(file):
                if not file.exists():
                    made = file.with_suffix(".made")
                    made.write_bytes(work(*given))
                    made.rename(file)  # whoever sees it, sees all of it
        return file.read_bytes()

    return asked
