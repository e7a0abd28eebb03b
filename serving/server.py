"""uvicorn around the application, with a beginning and an end of our own: signals drain it, a dead engine ends it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from time import monotonic

import uvicorn

from vlm_trt.bundle.errors import StorageError, VlmTrtError
from vlm_trt.runtime.loop import EngineLoop
from vlm_trt.serving.app import make_app
from vlm_trt.serving.connection import limited
from vlm_trt.serving.lifecycle import Health
from vlm_trt.serving.logs import log
from vlm_trt.serving.services import Services
from vlm_trt.serving.settings import Settings
from vlm_trt.serving.turn import turns

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WATCH_S = 0.5
_KEEP_ALIVE_S = 75  # longer than balancers keep theirs: the side that knows of the next request closes
_CONNECTIONS = 2_048  # that the system may hold until they are accepted
_CLOSE_S = 5.0  # for what is left when all answers have ended or were cut


class _Uvicorn(uvicorn.Server):
    """Without its own signals: it would close the door at once."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Serves models until it is told to end, or until one of their engines has ended."""

    def __init__(self, loops: Mapping[str, EngineLoop], settings: Settings) -> None:
        self._loops, self._settings = loops, settings
        self._ending: asyncio.Task[None] | None = None
        self._exit_code = 0

    def run(self, listener: socket.socket, ready: Callable[[], None]) -> int:
        """Serves on a bound socket; the exit code.

        Args:
            listener: where.
            ready: called once requests are taken.
        """
        factory = uvicorn.Config("", log_config=None).get_loop_factory()  # uvloop's, where it is installed
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(self.serve(listener, ready))

    async def serve(self, listener: socket.socket, ready: Callable[[], None]) -> int:
        """As `run`, in an event loop that runs."""
        self._services = Services(self._loops, self._settings)
        settings = self._settings
        config = uvicorn.Config(
            make_app(self._services, turns(self._services)),
            http=limited(settings.header_timeout_s, settings.body_timeout_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(_CLOSE_S),
        )
        self._uvicorn = _Uvicorn(config)
        self._hear()
        listener.listen(_CONNECTIONS)
        serving = asyncio.ensure_future(self._uvicorn.serve([listener]))
        try:
            await self._watch(serving, ready)
            await serving
        finally:
            await self._services.aclose()
            await self._close_loops()
        return self._exit_code

    def end(self) -> None:
        """Begins to drain; in the event loop's thread."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        await self._services.lifecycle.drain()
        self._uvicorn.should_exit = True

    async def _watch(self, serving: asyncio.Future[None], ready: Callable[[], None]) -> None:
        """Until it has ended: says that it is ready, and ends it when an engine is dead."""
        told = False
        while not serving.done():
            if self._uvicorn.started and not told:
                told = True
                ready()
            if self._services.lifecycle.health() is Health.DEAD and not self._exit_code:
                self._fail()
            await asyncio.wait([serving], timeout=_WATCH_S if told else 0.01)

    def _fail(self) -> None:
        """An engine's thread has ended, and no request can be answered any more."""
        for name, loop in self._loops.items():
            if not loop.state().alive:
                log.critical("engine ended", extra={"fields": {"model": name}}, exc_info=loop.died)
        self._exit_code = VlmTrtError.exit_code
        self._services.lifecycle.draining = True
        self._services.lifecycle.cut("the engine has failed and the server is ending; ask another one", "engine_failed")
        self._uvicorn.should_exit = True

    def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            try:
                loop.add_signal_handler(number, self._signalled, number)
            except (RuntimeError, ValueError):  # not the main thread, which alone hears signals
                return

    def _signalled(self, number: int) -> None:
        if self._ending is None:
            self.end()
            return
        log.warning("ended at once", extra={"fields": {"signal": signal.Signals(number).name}})
        sys.stderr.flush()
        os._exit(128 + number)  # an engine's step cannot be interrupted, and nobody waits for it

    async def _close_loops(self) -> None:
        """Ends the engines' threads; one in the middle of a step is left to the end of the process."""
        closing = [Thread(target=loop.close, args=(_CLOSE_S,), daemon=True) for loop in self._loops.values()]
        for thread in closing:
            thread.start()
        until = monotonic() + 2 * _CLOSE_S
        while any(thread.is_alive() for thread in closing) and monotonic() < until:
            await asyncio.sleep(0.01)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound and does not listen yet: who comes before the models are loaded is refused.

    Raises:
        StorageError: the address is not this machine's, or is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StorageError(f"--host {host} cannot be used: {error.strerror}; name an address of this machine") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise StorageError(
            f"--port {port} of {host} cannot be used: {error.strerror}; name another, or 0 for any that is free"
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a socket is reached from this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
