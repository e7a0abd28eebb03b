"""Who uses a model: one thread at a time. A call that comes meanwhile is refused, and changes nothing.

An answer that is read piece by piece lies open between its pieces. Answers that one thread has open take turns, step
by step, each in slots of its own. While one is open, calls that begin in another thread are refused; the answer itself
may be read on from any thread, as web frameworks do.
"""

from collections.abc import Callable, Generator
from threading import RLock, Thread, current_thread
from typing import Any, TypeVar

from vlm_trt.bundle.errors import UsageError

Piece = TypeVar("Piece")


class InUse:
    """Held by the thread that works, for as long as it does. Within it the thread may enter again."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._depth = 0
        self._readers: dict[int, Thread] = {}  # the thread that last read each open answer

    def __enter__(self) -> None:
        """
        Raises:
            UsageError: another thread is at work, or has an answer open.
        """
        self.enter(None)

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self, answer: int | None) -> None:
        """With the number of an answer that is open already, or is so from now on; else as `__enter__`."""
        if not self._lock.acquire(blocking=False):
            raise UsageError(
                "the model is answering another thread; wait until it has answered, or load the bundle once per thread"
            )
        if self._depth == 0 and answer not in self._readers and self._read_elsewhere():
            self._lock.release()
            raise UsageError(
                "another thread has an answer of this model open; read it to its end or close it, or load the bundle "
                "once per thread"
            )
        self._depth += 1
        if answer is not None:
            self._readers[answer] = current_thread()

    def leave(self) -> None:
        self._depth -= 1
        self._lock.release()

    def ended(self, answer: int) -> None:
        """That answer is not open any more."""
        self._readers.pop(answer, None)

    def _read_elsewhere(self) -> bool:
        me = current_thread()
        return any(reader is not me and reader.is_alive() for reader in list(self._readers.values()))


class OpenAnswer(Generator[Piece, None, None]):
    """A generator that works on a model. A `next` that is refused leaves it as it was, to be asked again."""

    def __init__(self, in_use: InUse, pieces: Generator[Piece, None, None]) -> None:
        self._in_use, self._pieces = in_use, pieces

    def send(self, value: None) -> Piece:
        """The next piece.

        Raises:
            UsageError: another thread uses the model.
        """
        return self._read(lambda: next(self._pieces))

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Piece:
        return self._read(lambda: self._pieces.throw(typ if val is None else val))

    def close(self) -> None:
        """Gives its slots back.

        Raises:
            UsageError: another thread reads it at this moment.
        """
        try:
            self._pieces.close()
        except ValueError:  # "generator already executing"
            raise UsageError("the answer is being read in another thread; close it there") from None
        self._in_use.ended(id(self))

    def _read(self, piece: Callable[[], Piece]) -> Piece:
        self._in_use.enter(id(self))
        try:
            return piece()
        except BaseException:  # its end, too
            self._in_use.ended(id(self))
            raise
        finally:
            self._in_use.leave()

    def __del__(self) -> None:
        self.close()
