"""How much memory a build takes, seen from inside its process."""

from pathlib import Path
from threading import Event, Thread
from types import TracebackType

_EVERY_SECONDS = 0.02


class PeakMemory:
    """Measures while it is entered. Memory of its own counts; mapped files do not, whose pages the system takes back
    when it needs them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._end = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, own_bytes())
            if self._end.wait(_EVERY_SECONDS):
                return


def own_bytes() -> int:
    """Anonymous memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
