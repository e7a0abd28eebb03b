"""Values of a JSON document that a person may have edited: each with its type, or a sentence's middle that names it."""

from collections.abc import Mapping
from typing import Any


def value_of(values: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """A field of an object, of that type.

    Raises:
        ValueError: it is missing, or of another type.
    """
    found = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(found, kind) or isinstance(found, bool):
        raise ValueError(f"{name!r} is missing or of a wrong type")
    return found


def count_of(values: Any, name: str, least: int) -> int:
    """A whole number from `least` on.

    Raises:
        ValueError: it is missing, or none.
    """
    found: int = value_of(values, name, int)
    if not least <= found < 2**31:
        raise ValueError(f"{name} is {found}")
    return found
