"""How much may come in at once."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from starlette.datastructures import Headers

from tests.serving.conftest import Serve
from tests.serving.live import Live, raw, until
from vlm_trt.serving.errors import ApiError
from vlm_trt.serving.limits import Budget, require_json

MIB = 1 << 20


@pytest.fixture
def small(serve: Serve) -> Live:
    return serve(max_body_bytes=MIB, held_bytes=2 * MIB)


def body_of(size: int) -> bytes:
    """A request whose body has exactly so many bytes."""
    document = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "filling": ""}
    return json.dumps(document | {"filling": "x" * (size - len(json.dumps(document)))}).encode()


def sent(live: Live, content: Any, **headers: str) -> httpx.Response:
    return live.client.post(
        "/v1/chat/completions", content=content, headers={"Content-Type": "application/json", **headers}
    )


def test_a_body_at_the_limit_is_read_and_one_beyond_is_not(small: Live) -> None:
    assert sent(small, body_of(MIB)).status_code == 200
    error = small.refusal(sent(small, body_of(MIB + 1)), 413)
    assert error["code"] == "body_too_large" and "more than 1 MiB" in error["message"]
    assert sent(small, body_of(MIB + 1)).headers["connection"] == "close"


def test_a_body_that_does_not_say_its_size_is_counted_as_it_comes(small: Live) -> None:
    def chunks(size: int) -> Iterator[bytes]:
        content = body_of(size)
        for at in range(0, size, 1 << 14):
            yield content[at : at + (1 << 14)]

    assert sent(small, chunks(MIB)).status_code == 200
    small.refusal(sent(small, chunks(MIB + 1)), 413)


def test_a_body_without_end_is_cut(small: Live) -> None:
    """It is refused as soon as it is too long, and the connection closed, not read on."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    chunk = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
    answer = raw(small, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413")  # or reset, for what was still under way
    small.refusal(sent(small, body_of(2 * MIB)), 413)


def test_a_body_on_any_route_is_bounded(small: Live) -> None:
    answer = raw(small, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (2 * MIB))
    assert answer.startswith(b"HTTP/1.1 413")


class Slow:
    """Requests whose bodies stop short of their end until they are let on."""

    def __init__(self, live: Live, count: int, body: bytes) -> None:
        self._gate, self.codes = threading.Event(), list[int]()

        def parts() -> Iterator[bytes]:
            yield body[:-10]
            self._gate.wait(60)
            yield body[-10:]

        send = (lambda: self.codes.append(sent(live, parts()).status_code),)
        self._threads = [threading.Thread(target=one) for one in send * count]

    def __enter__(self) -> "Slow":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gate.set()
        for thread in self._threads:
            thread.join(60)


def test_all_bodies_together_are_bounded(small: Live) -> None:
    """While others are held, one more is refused; when they have gone, it is taken."""
    body = body_of(MIB)
    with Slow(small, 2, body) as slow:
        until(lambda: small.services.held.bytes == 2 * (MIB - 10))
        response = sent(small, body)
        assert small.refusal(response, 503)["code"] == "memory_full" and response.headers["retry-after"] == "1"
    assert slow.codes == [200, 200] and sent(small, body).status_code == 200
    until(lambda: small.services.held.bytes == 0)


def test_more_requests_than_may_wait_are_refused_before_they_are_read(serve: Serve) -> None:
    """The bundle has three slots, and nobody may wait: while three bodies are coming, a fourth is too many."""
    live = serve(max_waiting=0)
    with Slow(live, 3, body_of(300)) as slow:
        until(lambda: live.services.held.bytes == 3 * 290)
        response = live.ask()
        assert live.refusal(response, 503)["code"] == "queue_full" and response.headers["retry-after"] == "1"
        assert live.client.get("/health").status_code == 200 and live.client.get("/metrics").status_code == 200
    assert slow.codes == [200, 200, 200] and live.ask().status_code == 200


def test_a_budget_is_handed_out_in_turn() -> None:
    """A large share that waits is not overtaken by small ones, and what is given up goes to the next."""
    order: list[str] = []

    async def use(budget: Budget, name: str, amount: int, leave: asyncio.Event) -> None:
        async with budget.taken(amount):
            order.append(name)
            await leave.wait()

    async def scene() -> None:
        budget, first, others = Budget(10), asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(use(budget, "first", 6, first))]
        for name, amount in (("large", 9), ("small", 1), ("beyond", 99)):
            await asyncio.sleep(0)
            tasks.append(asyncio.create_task(use(budget, name, amount, others)))
        await asyncio.sleep(0)
        assert order == ["first"]
        first.set()
        await asyncio.sleep(0.01)
        assert order == ["first", "large", "small"]
        tasks[3].cancel()
        others.set()
        await asyncio.wait(tasks)
        async with budget.taken(10):  # all of it is there again
            pass

    asyncio.run(scene())


def test_a_share_that_is_given_up_while_it_waits_is_not_lost() -> None:
    async def scene() -> None:
        budget = Budget(10)

        async def hold(amount: int) -> AsyncIterator[None]:
            async with budget.taken(amount):
                yield

        held = hold(10)
        await anext(held)
        waiting = [asyncio.create_task(budget._take(amount)) for amount in (8, 5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await held.aclose()
        await asyncio.wait(waiting)
        assert waiting[0].cancelled() and not waiting[1].cancelled() and budget._free == 5

    asyncio.run(scene())


def test_json_is_asked_for_by_name() -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        require_json(Headers({"Content-Type": kind, "Content-Encoding": "identity"}))
    with pytest.raises(ApiError):
        require_json(Headers({}))
