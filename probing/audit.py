"""What an audit of graphs found: every number of their files, and every constant, against what they should be."""

from collections.abc import Sequence
from dataclasses import dataclass

_SHOWN = 8  # sentences of each kind; a file of another model would give hundreds


@dataclass(frozen=True)
class Audit:
    """The counts of what was compared, and a sentence for all that is not as it should be."""

    weights: int = 0
    bytes: int = 0  # of the files that hold them
    constants: int = 0  # attributes of nodes, and small tensors inside the graphs
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        size = f"{self.bytes / 1e9:.2f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.2f} MB"
        how = "not as they should be" if self.failures else "bit for bit"
        return f"audit: {self.weights:,} weights, {size}, {how}; {self.constants:,} constants"

    def joined(self, other: "Audit") -> "Audit":
        return Audit(
            self.weights + other.weights,
            self.bytes + other.bytes,
            self.constants + other.constants,
            (*self.failures, *other.failures),
            (*self.notes, *other.notes),
        )


def some(sentences: Sequence[str], what: str) -> tuple[str, ...]:
    """The first of them, and how many more there are."""
    more = len(sentences) - _SHOWN
    return (*sentences[:_SHOWN], *([f"audit: {more} more {what} differ"] if more > 0 else []))
