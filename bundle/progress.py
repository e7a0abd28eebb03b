"""What a stage needs of whoever shows its progress: no stage knows a terminal."""

from typing import Protocol


class Bar(Protocol):
    """A progress bar."""

    def update(self, n_steps: int) -> None:
        """That many more steps, bytes or things are done."""
