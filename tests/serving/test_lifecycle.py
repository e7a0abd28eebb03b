"""Ready, draining, stuck, dead: what health says, and what becomes of requests."""

import threading
from typing import Any

import httpx
import pytest

from tests.serving.conftest import Serve
from tests.serving.live import Live, streamed, until
from vlm_trt.runtime.loop import State


def long(stream: bool = True) -> dict[str, Any]:
    messages = [{"role": "user", "content": "go on"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 10_000, "ignore_eos": True, "stream": stream}


class Asked:
    """Answers under way, of a server that gives no others, each read by a thread of its own."""

    def __init__(self, live: Live, *bodies: dict[str, Any]) -> None:
        self.responses: list[httpx.Response] = []
        self._threads = [threading.Thread(target=self._ask, args=(live, body)) for body in bodies]
        for thread in self._threads:
            thread.start()
        until(lambda: first_tokens(live) == len(bodies))

    def _ask(self, live: Live, body: dict[str, Any]) -> None:
        response = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        self.responses.append(response)

    def ended(self) -> list[httpx.Response]:
        for thread in self._threads:
            thread.join(60)
        return self.responses


def first_tokens(live: Live) -> float:
    """How many answers have begun, of all that the server has given."""
    found = live.services.metrics.first_token.collect()
    return sum(sample.value for one in found for sample in one.samples if sample.name.endswith("_count"))


def slowed(live: Live, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> threading.Event:
    """An engine whose steps take at least so long, until the event is set."""
    hurry, scheduler = threading.Event(), live.engine.model.scheduler
    step = scheduler.step

    def slow() -> None:
        step()
        hurry.wait(seconds)

    monkeypatch.setattr(scheduler, "step", slow)
    return hurry


def begin_to_drain(live: Live) -> None:
    live.loop.call_soon_threadsafe(live.server.end)
    until(lambda: live.services.lifecycle.draining)


def test_draining_lets_answers_end_and_takes_no_more(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    live = serve(drain_timeout_s=60)
    hurry = slowed(live, monkeypatch)
    asked = Asked(live, long(), long(stream=False))
    begin_to_drain(live)
    response = live.ask()
    error = live.refusal(response, 503)
    assert error["code"] == "draining" and response.headers["retry-after"] == "5"
    assert live.client.get("/health/ready").json() == {"status": "draining"}
    assert live.client.get("/health").status_code == 503 and live.client.get("/health/live").status_code == 200
    assert live.client.get("/metrics").status_code == 200
    hurry.set()
    responses = asked.ended()
    assert [one.status_code for one in responses] == [200, 200]
    assert any(one.text.endswith("data: [DONE]\n\n") for one in responses)


def test_answers_that_take_too_long_are_cut_with_an_error(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    live = serve(drain_timeout_s=0.1)
    slowed(live, monkeypatch)
    asked = Asked(live, long(), long(stream=False))
    begin_to_drain(live)
    by_kind = {one.headers["content-type"].partition(";")[0]: one for one in asked.ended()}
    whole, stream = by_kind["application/json"], streamed(by_kind["text/event-stream"])
    assert whole.status_code == 503 and whole.json()["error"]["code"] == "draining"
    assert stream[-1]["error"]["code"] == "draining" and stream[0]["choices"]  # and no [DONE]


def test_the_delay_is_for_balancers_to_see_it(serve: Serve) -> None:
    """Not ready at once, and still there for a while."""
    live = serve(drain_delay_s=1.0)
    begin_to_drain(live)
    assert live.client.get("/health/ready").status_code == 503 and live.client.get("/v1/models").status_code == 200


def test_an_engine_that_does_not_get_on_is_not_ready(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen while work waits only; what it answers by itself goes on."""
    for stuck_s, status in ((0.0, 200), (59.0, 200), (61.0, 503)):
        state = State(True, stuck_s, 1, 1, 3, 0.0, 0)
        monkeypatch.setattr(live.engine, "state", lambda state=state: state)
        response = live.client.get("/health/ready")
        assert response.status_code == status and response.json() == {"status": "stuck" if status == 503 else "ready"}
    assert live.client.get("/health/live").status_code == 200


def test_a_dead_engine_ends_the_server(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who wait are told, and so is whoever started it."""
    live = serve()
    hurry = slowed(live, monkeypatch)
    asked = Asked(live, long(), long(stream=False))

    def broken() -> None:
        raise RuntimeError("the GPU has fallen off the bus")

    monkeypatch.setattr(live.engine.model.scheduler, "step", broken)
    hurry.set()
    responses = {one.headers["content-type"].partition(";")[0]: one for one in asked.ended()}
    whole, stream = responses["application/json"], streamed(responses["text/event-stream"])
    assert whole.status_code == 503 and "bus" not in whole.text
    assert "error" in stream[-1] and "bus" not in responses["text/event-stream"].text
    until(lambda: live.server._exit_code == 1)


def test_a_request_that_breaks_is_its_own_and_numbered(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever an engine raises for one request: a 500 with a number, the traceback beside it in the log."""

    def broken(sequence: Any) -> Exception:
        return ValueError(f"<object at 0x7f00> in {__file__}")

    monkeypatch.setattr(live.engine.model, "outcome", broken)
    response = live.ask()
    error = live.refusal(response, 500)
    number = response.headers["x-request-id"]
    assert error["type"] == "server_error" and number in error["message"]
    (record,) = [one for one in caplog.records if one.message == "failure"]
    assert record.fields["id"] == number and record.exc_info is not None  # type: ignore[attr-defined]
    *_, last = streamed(live.ask(stream=True, ignore_eos=True))
    assert last["error"]["code"] == "server_error"
    monkeypatch.undo()
    assert live.ask().status_code == 200


def test_a_request_has_its_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    live = serve(request_timeout_s=0.5)
    slowed(live, monkeypatch, 0.05)
    response = live.post(**long(stream=False))
    assert live.refusal(response, 503)["code"] == "timed_out" and "retry-after" in response.headers
    *_, last = streamed(live.post(**long()))
    assert last["error"]["code"] == "timed_out"
    live.idle()
