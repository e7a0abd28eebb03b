"""A profile's file, for whoever reads one: nothing is imported here that measuring needs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.reading import read_json

SCHEMA = 2
T = TypeVar("T")


def from_file(path: Path, read: Callable[[Any], T], what: str, remedy: str) -> T:
    """What is read of a profile's file.

    Args:
        path: as the user names it.
        read: JSON values → that; a ValueError says what is wrong with them.
        what: what the file is not, where they are: "is no profile".
        remedy: the command that makes one.
    Raises:
        UsageError: it cannot be read, or is not what is wanted.
    """
    try:
        found = read_json(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}; give a profile's JSON file") from None
    except ValueError as error:
        raise UsageError(f"{path} is no JSON ({error}); give a profile's JSON file") from None
    try:
        return read(found)
    except ValueError as error:
        raise UsageError(f"{path} {what} ({error}); make one: {remedy}") from None
