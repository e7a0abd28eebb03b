"""What a stage needs of whoever shows its progress: no stage knows a terminal."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Bar(Protocol):
    """A progress bar."""

    def update(self, n_steps: int) -> None:
        """That many more steps, bytes or things are done."""


# A bar for a label and a total, shown while it is entered; None where nobody watches.
MakeBar = Callable[[str, int], AbstractContextManager[Bar | None]]


def no_bar(label: str, total: int) -> AbstractContextManager[Bar | None]:
    """Nobody watches."""
    return nullcontext()
