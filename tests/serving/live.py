"""Servers for the tests: the real one, on a port of its own, in a thread of this process."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx
from openai import OpenAI

from vlm_trt.runtime.choice import load
from vlm_trt.runtime.loop import EngineLoop
from vlm_trt.serving.server import Server, bind, url_of
from vlm_trt.serving.services import Services
from vlm_trt.serving.settings import Settings

T = TypeVar("T")
WAIT_S = 60.0  # for what happens at once on a machine that is not busy


class Live:
    """A server that runs."""

    def __init__(self, url: str, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self.url, self.server, self.loop = url, server, loop
        self.client = httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False)
        self.key = "none"

    @property
    def services(self) -> Services:
        return self.server._services

    @property
    def engine(self) -> EngineLoop:
        return next(iter(self.services.models.values())).loop

    @property
    def port(self) -> int:
        return httpx.URL(self.url).port or 80

    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=WAIT_S)

    def post(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def ask(self, content: Any = "hello", **body: Any) -> httpx.Response:
        """A chat request of one message."""
        messages = [{"role": "user", "content": content}]
        return self.post(**{"model": "tiny", "messages": messages, "max_tokens": 4, **body})

    def refusal(self, response: httpx.Response, status: int, param: str | None = None) -> dict[str, Any]:
        """The error object of a refusal, whose form is as it should be."""
        assert response.status_code == status, response.text
        error: dict[str, Any] = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert param is None or error["param"] == param, error
        require_own_words(response.text)
        return error

    def in_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns in the server's own event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(WAIT_S)

    def idle(self) -> None:
        """Waits until nothing is in flight any more."""
        until(lambda: not self.engine.state().running and not self.engine.state().waiting)


def require_own_words(text: str) -> None:
    """No address, path, traceback or name of a library stands in a body."""
    lowered = text.lower()
    for trace in ("0x", "traceback", ".py", "/root/", "/work", "/tmp", "site-packages", "pydantic", "pillow", "pil.",
                  "starlette", "fastapi", "llguidance.", "httpx", "errno", "exception", "<_io"):  # fmt: skip
        assert trace not in lowered, (trace, text)


def until(holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Waits for something that no event tells."""
    event = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if holds():
            return
        event.wait(0.01)
    raise AssertionError("it did not happen")


@contextlib.contextmanager
def serving(bundles: Mapping[str, Path], settings: Settings, *, send_buffer: int = 0) -> Iterator[Live]:
    """A server over bundles that nobody verified.

    Args:
        bundles: name → bundle.
        settings: of the server.
        send_buffer: bytes that the system holds of what is sent; 0: its own choice.
    """
    loops = {
        name: EngineLoop(load(path, backend="cpu", threads=1, allow_unverified=True), settings.max_waiting)
        for name, path in bundles.items()
    }
    for loop in loops.values():
        loop.start()
    listener = bind("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server, ready, found = Server(loops, settings), threading.Event(), []

    async def run() -> int:
        found.append(asyncio.get_running_loop())
        return await server.serve(listener, ready.set)

    thread = threading.Thread(target=lambda: found.append(asyncio.run(run())), name="server")
    thread.start()
    assert ready.wait(WAIT_S), "the server did not start"
    live = Live(url_of(listener), server, found[0])
    try:
        yield live
    finally:
        live.client.close()
        if thread.is_alive():
            live.loop.call_soon_threadsafe(server.end)
        thread.join(WAIT_S)
        listener.close()
        assert not thread.is_alive(), "the server did not end"


def streamed(response: httpx.Response) -> list[Any]:
    """The documents of a stream, and "[DONE]"."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines), response.text
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def raw(live: Live, request: bytes, *, end: bool = True) -> bytes:
    """What comes back for bytes that are sent as they are, until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", live.port), WAIT_S) as connection:
        with contextlib.suppress(OSError):  # it may have answered and closed already
            connection.sendall(request)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(1 << 16):
                received += chunk
        return received
