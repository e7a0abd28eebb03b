"""A build in a process of its own: its memory is given back when it ends, and its end by the system is a sentence."""

import signal
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from vlm_trt.bundle.children import deaf_to_interrupts
from vlm_trt.bundle.entries import Profile
from vlm_trt.bundle.errors import ResourceError, VlmTrtError
from vlm_trt.engines.builder import BuildOptions, Built, build_engine


def built_apart(
    graph: Path,
    profiles: Sequence[Profile],
    plan: Path,
    options: BuildOptions,
    report: Callable[[float], None] = lambda _: None,
) -> Built:
    """What `build_engine` gives, done in another process; arguments and errors are the same.

    Raises:
        ResourceError: the process was ended from outside, as the system does when memory runs out.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, graph, tuple(profiles), plan, options), daemon=True)
    with deaf_to_interrupts():
        process.start()
    theirs.close()
    try:
        while True:
            try:
                message = ours.recv()
            except EOFError:
                process.join()
                raise _ended(process.exitcode, graph) from None
            if isinstance(message, Built):
                return message
            if isinstance(message, BaseException):
                raise message
            report(message)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _work(connection: Connection, graph: Path, profiles: Sequence[Profile], plan: Path, options: BuildOptions) -> None:
    try:
        connection.send(build_engine(graph, profiles, plan, options, connection.send))
    except VlmTrtError as error:
        connection.send(error)
    except MemoryError:
        connection.send(ResourceError(f"not enough memory to build {graph}; see what it takes with: vlm-trt plan"))


def _ended(exit_code: int | None, graph: Path) -> VlmTrtError:
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        return ResourceError(
            f"the process that builds {graph} was ended by {name}, most likely for lack of memory; nothing was "
            "published. See what the build takes with: vlm-trt plan"
        )
    return VlmTrtError(
        f"the process that builds {graph} ended with code {exit_code} and no word; nothing was published"
    )
