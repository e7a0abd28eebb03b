"""Requests that never come whole, answers that nobody reads: the time of both ends."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Serve
from tests.serving.live import WAIT_S, Live, until

LINE = b"GET /health HTTP/1.1\r\nHost: a\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@pytest.fixture
def impatient(serve: Serve) -> Live:
    return serve(header_timeout_s=0.3, body_timeout_s=0.3)


@contextlib.contextmanager
def connected(live: Live, *parts: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", live.port), WAIT_S) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def test_half_a_header_is_given_up(impatient: Live) -> None:
    with connected(impatient, LINE) as connection:
        answer = rest(connection)
    assert answer.startswith(b"HTTP/1.1 408") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_who_says_nothing_is_left_without_a_word(impatient: Live) -> None:
    with connected(impatient) as connection:
        assert rest(connection) == b""


def test_many_half_sent_headers_do_not_stay(impatient: Live) -> None:
    connections = [socket.create_connection(("127.0.0.1", impatient.port), WAIT_S) for _ in range(50)]
    for connection in connections:
        connection.sendall(LINE)
    state = impatient.server._uvicorn.server_state
    assert impatient.client.get("/health").status_code == 200  # while they are there
    for connection in connections:
        rest(connection)
        connection.close()
    until(lambda: len(state.connections) <= 1)  # the client's own


def test_half_a_body_is_given_up(impatient: Live) -> None:
    with connected(impatient, POST, b"Content-Length: 100\r\n\r\n", b'{"model"') as connection:
        assert rest(connection).startswith(b"HTTP/1.1 408")


def test_a_body_that_trickles_on_a_route_that_reads_none_is_cut(impatient: Live, monkeypatch: Any) -> None:
    """The answer is there at once; the rest of the body is not waited for for ever."""
    monkeypatch.setattr("vlm_trt.serving.connection._BODY_GRACE_S", 0)
    with connected(impatient, LINE, b"Content-Length: 1000000\r\n\r\n") as connection:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(OSError):
            for _ in range(1_000):
                connection.sendall(b"x")
        assert b"HTTP" not in rest(connection)


def test_a_header_without_end_is_refused(live: Live) -> None:
    with connected(live, LINE) as connection:
        with contextlib.suppress(OSError):
            for number in range(1_000):
                connection.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1_000))
        answer = rest(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431")  # or reset, for what was still under way


def test_whole_requests_go_on_one_connection(impatient: Live) -> None:
    """Each has the time for itself, and so has the connection between two."""
    with connected(impatient) as connection:
        for _ in range(3):
            connection.sendall(LINE + b"\r\n")
            received = connection.recv(1 << 16)
            while b"ready" not in received:
                received += connection.recv(1 << 16)
            assert received.startswith(b"HTTP/1.1 200")


def test_two_requests_at_once_are_answered_in_turn(live: Live) -> None:
    with connected(live, (LINE + b"\r\n") * 2) as connection:
        received = b""
        while received.count(b"HTTP/1.1 200") < 2:
            received += connection.recv(1 << 16)


@pytest.mark.parametrize("chunks", [0, 1, 3])
def test_who_leaves_a_stream_ends_its_work(live: Live, chunks: int) -> None:
    """At its beginning, after the first chunk, and later; the slot is free again."""
    left = cancelled(live)
    with live.client.stream("POST", "/v1/chat/completions", json=long()) as response:
        for _ in zip(range(chunks), response.iter_lines(), strict=False):
            pass
    until(lambda: cancelled(live) == left + 1)
    live.idle()
    assert live.ask().status_code == 200


def test_who_leaves_before_the_answer_ends_its_work(live: Live) -> None:
    left = cancelled(live)
    body = json.dumps({**long(), "stream": False}).encode()
    with connected(live, POST, b"Content-Length: %d\r\n\r\n" % len(body), body):
        until(lambda: live.engine.state().running > 0)
    until(lambda: cancelled(live) == left + 1)
    live.idle()


def test_who_leaves_while_the_body_comes_is_no_failure(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    left = cancelled(live)
    with connected(live, POST, b"Content-Length: 100\r\n\r\n", b'{"model"'):
        until(lambda: live.services.lifecycle._in_flight > 0)
    until(lambda: cancelled(live) == left + 1)
    assert not caplog.records


def test_who_never_reads_is_given_up(serve: Serve) -> None:
    """Small buffers on both sides: soon the answer lies unread, the engine is stopped and the connection dropped."""
    live = serve(send_buffer=4_096, reader_patience_s=0.05)
    body = json.dumps({**long(), "logprobs": True, "top_logprobs": 20}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(("127.0.0.1", live.port))
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: cancelled(live) == 1)
        live.idle()
        until(lambda: not any(one.cycle for one in list(live.server._uvicorn.server_state.connections)))
    metrics = live.client.get("/metrics").text
    assert 'vlm_trt:requests_cancelled_total{model_name="tiny",stage="answering"} 1.0' in metrics


def test_hundreds_of_connections_at_once(live: Live) -> None:
    """More than there is room for: they are taken or refused in words; health answers meanwhile."""

    async def storm() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=live.url, timeout=WAIT_S, limits=limits, trust_env=False) as client:

            async def ask(number: int) -> int:
                if number % 50 == 0:
                    return (await client.get("/health")).status_code
                body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
                return (await client.post("/v1/chat/completions", json=body)).status_code

            return await asyncio.gather(*map(ask, range(200)))

    codes = asyncio.run(storm())
    assert set(codes) <= {200, 503} and all(codes[at] == 200 for at in range(0, 200, 50))
    live.idle()
    assert live.ask().status_code == 200


def long() -> dict[str, Any]:
    """A request whose answer goes on to the end of the cache."""
    messages = [{"role": "user", "content": "go on"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 10_000, "ignore_eos": True, "stream": True}


def cancelled(live: Live) -> float:
    found = live.services.metrics.cancelled.collect()
    return sum(sample.value for one in found for sample in one.samples if sample.name.endswith("_total"))
