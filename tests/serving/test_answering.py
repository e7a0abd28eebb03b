"""Events of one request, from the engine's thread to the task that reads them."""

import asyncio
import threading
from typing import Any, cast

import pytest

from vlm_trt.runtime.loop import EngineLoop, Listener, Piece, Ticket
from vlm_trt.runtime.model import Answer
from vlm_trt.serving import answering as module
from vlm_trt.serving.answering import Answering
from vlm_trt.serving.errors import ApiError, busy

ANSWER = Answer("ab", "ab", (), (1,), (2, 3), "stop", 0, 0, {}, ())


class Engine:
    """Tells what it is told to tell, from a thread of its own."""

    def __init__(self) -> None:
        self.cancelled: list[Ticket] = []

    def submit(self, request: Any, listen: Listener) -> Ticket:
        self.listen = listen
        return Ticket(1)

    def cancel(self, ticket: Ticket) -> None:
        self.cancelled.append(ticket)

    def tell(self, *events: Any) -> None:
        def work() -> None:
            for event in events:
                self.listen(event)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


def answering(engine: Engine, unread: asyncio.Event | None = None, patience_s: float = 5) -> Answering:
    return Answering(cast(EngineLoop, engine), cast(Any, None), unread or asyncio.Event(), patience_s)


def test_events_come_in_their_order() -> None:
    async def scene() -> list[Any]:
        engine = Engine()
        async with answering(engine) as one:
            first = asyncio.create_task(one.next())
            await asyncio.sleep(0)
            engine.tell(Piece("a", ()), Piece("b", ()), ANSWER)
            found = [(await first), await one.next(), await one.next()]
        assert not engine.cancelled  # it had ended
        assert [told.at for told in found] == sorted(told.at for told in found)
        return [told.event for told in found]

    assert asyncio.run(scene()) == [Piece("a", ()), Piece("b", ()), ANSWER]


def test_leaving_before_the_end_cancels() -> None:
    async def scene(*events: Any) -> list[Ticket]:
        engine = Engine()
        async with answering(engine) as one:
            engine.tell(*events)
            if events:
                await one.next()
        return engine.cancelled

    assert asyncio.run(scene()) == [Ticket(1)]
    assert asyncio.run(scene(Piece("a", ()))) == [Ticket(1)]
    assert asyncio.run(scene(ValueError("x"))) == []


def test_a_task_that_is_cancelled_cancels_the_request() -> None:
    async def scene() -> list[Ticket]:
        engine = Engine()

        async def read() -> None:
            async with answering(engine) as one:
                await one.next()

        task = asyncio.create_task(read())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return engine.cancelled

    assert asyncio.run(scene()) == [Ticket(1)]


def test_many_pieces_that_lie_long_mean_that_nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many alone do not: the reader may be slow for a moment. Long alone does not: the model may be."""
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    async def scene() -> None:
        engine, unread = Engine(), asyncio.Event()
        async with answering(engine, unread, patience_s=5):
            engine.tell(*[Piece("a", ())] * (module.MOST_UNREAD + 20))
            await asyncio.sleep(0)
            assert not unread.is_set()
            now[0] = 6
            engine.tell(Piece("b", ()))
            await asyncio.wait_for(unread.wait(), 60)
        engine, unread = Engine(), asyncio.Event()
        async with answering(engine, unread, patience_s=5):
            engine.tell(Piece("a", ()))
            now[0] = 60
            engine.tell(Piece("b", ()))
            await asyncio.sleep(0.01)
            assert not unread.is_set()

    asyncio.run(scene())


def test_an_answer_that_is_cut_ends_with_the_error() -> None:
    async def scene() -> None:
        engine = Engine()
        async with answering(engine) as one:
            engine.tell(Piece("a", ()), Piece("b", ()))
            await one.next()
            one.fail(busy("too late", "draining"))
            told = await one.next()
            assert isinstance(told.event, ApiError) and engine.cancelled == [Ticket(1)]
            one.fail(busy("again", "draining"))  # it has ended already

    asyncio.run(scene())


def test_an_engine_that_still_tells_when_the_server_has_ended_does_no_harm() -> None:
    engine = Engine()

    async def scene() -> None:
        async with answering(engine):
            pass

    asyncio.run(scene())
    engine.tell(Piece("a", ()))
