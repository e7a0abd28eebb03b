"""Processes that this one starts: an interrupt is this one's affair, which ends them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C, from their first instruction on; here it is heard afterwards.

    A terminal sends it to all of them, and a child that is importing torch would print what it was at.
    """
    resource_tracker.ensure_running()  # started with the first child, it would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
