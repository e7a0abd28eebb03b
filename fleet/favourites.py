"""Which engine a key belongs to, and which are asked in its place."""

from collections.abc import Iterable, Mapping
from hashlib import sha256


def ranked(key: str, queues: Mapping[str, int], most_ahead: int) -> list[list[str]]:
    """The favourite of a key, then all others; only all together where the favourite is much busier than another.

    Args:
        key: of the request.
        queues: engine → requests that it has, as far as is known.
        most_ahead: requests by which its queue may be longer than the shortest one.
    """
    if not queues:
        return []
    first = favourite(key, queues)
    others = [name for name in queues if name != first]
    if not others:
        return [[first]]
    if queues[first] > min(queues[name] for name in others) + most_ahead:
        return [others, [first]]
    return [[first], others]


def favourite(key: str, names: Iterable[str]) -> str:
    """Of some engines the one that a key belongs to."""
    return max(names, key=lambda name: sha256(f"{key}\0{name}".encode()).digest())
