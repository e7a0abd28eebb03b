"""Ctrl-C, wherever it strikes: one line on stderr and exit code 130, as shells have it for a program that SIGINT ended.

Imported before anything else, so that it holds while the rest is imported, too.
"""

import os
import signal
import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 130
_struck = False


@contextmanager
def listening() -> Iterator[None]:
    """Inside, an interrupt is remembered when it strikes: libraries make other errors of it, or lose it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before, hook = signal.signal(signal.SIGINT, _strike), sys.unraisablehook
    sys.unraisablehook = _unraisable
    try:
        with ending():
            yield
    finally:
        forget()
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook


@contextmanager
def ending() -> Iterator[None]:
    """Whatever an interrupt became inside is one line and the exit code.

    Raises:
        SystemExit: it struck.
    """
    try:
        yield
    except BaseException as error:
        if not (_struck or isinstance(error, KeyboardInterrupt)):
            raise
        forget()
        say_interrupted()
        # Another one shall not end the ending; nor shall Python, which kills itself by SIGINT in place of the exit code
        # where C code that it called was struck.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        sys.exit(EXIT_CODE)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process with 143, until somebody else hears it: the first process of a container would
    not be ended by a signal that it does not ask for."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"vlm-trt: ended by SIGTERM\n")  # `print` could have been struck in the middle of another
    os._exit(128 + number)


def forget() -> None:
    """Says that whatever was struck has dealt with it, as a chat does whose turn was stopped."""
    global _struck
    _struck = False


def say_interrupted() -> None:
    print("vlm-trt: interrupted", file=sys.stderr)


def _strike(number: int, frame: FrameType | None) -> None:
    global _struck
    _struck = True
    raise KeyboardInterrupt


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """A callback or a destructor was struck, where Python can only print and go on: strike again."""
    if isinstance(lost.exc_value, KeyboardInterrupt):
        interrupt_main()
    else:
        sys.__unraisablehook__(lost)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    """Struck before a command began."""
    if issubclass(kind, KeyboardInterrupt):
        say_interrupted()
        os._exit(EXIT_CODE)
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _uncaught
