"""What a piece of work takes of the host that does it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Needs:
    """An estimate, from sizes alone."""

    ram_bytes: int = 0
    disk_bytes: int = 0  # of what it leaves
    seconds: float | None = None  # None: not known
