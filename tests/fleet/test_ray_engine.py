"""An engine of a fleet, asked through its method: what comes is what its server would send."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.serving.live import until
from vlm_trt.bundle.errors import BundleError, VlmTrtError
from vlm_trt.fleet.ray_engine import EngineReplica

T = TypeVar("T")
CHAT = "/v1/chat/completions"
Run = Callable[[Coroutine[Any, Any, T]], T]


@pytest.fixture
def replica(exported: Callable[..., Path]) -> EngineReplica:
    return EngineReplica("tiny", {"models": {"tiny": str(exported("ntk-256"))}, "backend": "cpu", "unverified": True})


def body(**more: Any) -> bytes:
    said = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
    return json.dumps(said | more).encode()


async def messages(replica: EngineReplica, sent: bytes) -> list[Any]:
    return [message async for message in replica.answer("key", CHAT, sent, "number7")]


def test_an_answer_has_its_status_its_number_and_its_text(replica: EngineReplica) -> None:
    async def asked() -> None:
        start, *rest = await messages(replica, body())
        assert start["status"] == 200
        assert (b"x-request-id", b"number7") in [(name.lower(), value) for name, value in start["headers"]]
        answer = json.loads(b"".join(message["body"] for message in rest))
        assert answer["choices"][0]["message"]["content"]
        start, *rest = await messages(replica, body(stream=True))
        assert rest[-2]["body"] == b"data: [DONE]\n\n"
        streamed = [json.loads(one["body"][6:]) for one in rest[:-2]]
        text = "".join(one["choices"][0]["delta"].get("content", "") for one in streamed)
        assert text == answer["choices"][0]["message"]["content"]

    asyncio.run(asked())


def test_a_bad_request_is_refused_as_by_a_server(replica: EngineReplica) -> None:
    async def asked() -> None:
        start, *rest = await messages(replica, body(n=3))
        assert start["status"] == 400
        assert json.loads(b"".join(message["body"] for message in rest))["error"]["param"] == "n"

    asyncio.run(asked())


def test_who_leaves_early_frees_the_slot(replica: EngineReplica) -> None:
    async def asked() -> None:
        stream = replica.answer("key", CHAT, body(stream=True, max_tokens=200, ignore_eos=True), "number8")
        async for message in stream:
            if message["type"] == "http.response.body":
                break
        assert (await replica.state()).running == 1
        await stream.aclose()

    asyncio.run(asked())
    until(lambda: not asyncio.run(replica.state()).running)


def test_it_says_how_it_is(replica: EngineReplica) -> None:
    async def asked() -> None:
        await replica.check_health()
        state, offered = await replica.state(), await replica.offered()
        assert (state.alive, offered.name) == (True, "tiny")
        assert offered.max_seq_tokens > 0
        assert b"vlm_trt:engine_up" in await replica.metrics_page()

    asyncio.run(asked())


def test_an_engine_that_has_ended_is_not_well(replica: EngineReplica) -> None:
    async def ended() -> None:
        await asyncio.to_thread(replica.__del__)
        with pytest.raises(VlmTrtError, match=r"the engine is dead; the log of this replica tells why"):
            await replica.check_health()

    asyncio.run(ended())


def test_a_bundle_that_this_machine_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"lacking is not a folder; make a bundle with"):
        EngineReplica("tiny", {"models": {"tiny": str(tmp_path / "lacking")}})
