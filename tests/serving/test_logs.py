"""What is logged of a request, and what never is."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serving.live import Live, until
from tests.serving.pictures import data_url, encoded
from vlm_trt.serving.logs import JsonLines, UnknownFields, log_to

SECRET = "the-colour-of-my-secret-door"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that is logged, as it stands on standard error."""
    loggers = [logging.getLogger(name) for name in ("vlm_trt", "uvicorn", "asyncio")]
    before = [(one.handlers, one.propagate, one.level) for one in loggers]
    stream = io.StringIO()
    log_to(stream)
    yield stream
    for one, (handlers, propagate, level) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def told(lines: io.StringIO, *responses: httpx.Response) -> list[dict[str, Any]]:
    """The lines of those requests. A line is written when the answer is on its way, so earlier ones may come late."""
    numbers = [response.headers["x-request-id"] for response in responses]
    until(lambda: all(f'"event": "request", "id": "{number}"' in lines.getvalue() for number in numbers))
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    return [line for number in numbers for line in found if line["event"] == "request" and line["id"] == number]


def test_a_request_is_one_line(live: Live, lines: io.StringIO) -> None:
    response = live.ask(max_tokens=3, ignore_eos=True)
    (line,) = told(lines, response)
    usage = response.json()["usage"]
    assert line["event"] == "request" and line["level"] == "info" and line["id"] == response.headers["x-request-id"]
    assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert (line["model"], line["finish_reason"], line["streamed"]) == ("tiny", "length", False)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (usage["prompt_tokens"], 3)
    assert line["ms"] >= line["first_token_ms"] > 0 and "reason" not in line


def test_a_refusal_has_its_reason(live: Live, lines: io.StringIO) -> None:
    tools, nowhere = live.ask(tools=[{}]), live.client.get("/" + SECRET)
    first, second, third = told(lines, tools, nowhere, live.client.get(f"/v1/models/{SECRET}?key={SECRET}"))
    assert (first["status"], first["reason"]) == (400, "unsupported_parameter") and "model" not in first
    assert (second["route"], second["status"]) == ("unmatched", 404)
    assert (third["route"], third["reason"]) == ("/v1/models/{name:path}", "model_not_found")


def test_health_and_metrics_are_not_worth_a_line(live: Live, lines: io.StringIO) -> None:
    quiet = [live.client.get(path) for path in ("/health", "/health/live", "/health/ready", "/metrics")]
    (line,) = told(lines, live.client.get("/version"))
    assert line["route"] == "/version"
    assert not any(response.headers["x-request-id"] in lines.getvalue() for response in quiet)


def test_no_prompt_picture_or_key_is_ever_logged(
    live: Live, lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of answers, not of refusals, not of failures."""
    picture = data_url(encoded())
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": SECRET}]
    live.client.headers["Authorization"] = f"Bearer {SECRET}"
    try:
        live.ask(parts)
        live.ask(parts, stream=True)
        live.ask(parts, stop=[SECRET], user=SECRET, **{SECRET: 1})
        live.ask(SECRET * 100_000)
        live.ask([{"type": SECRET}])
        live.ask(temperature=SECRET)
        live.ask(model=SECRET)
        live.client.post("/v1/chat/completions", content=SECRET, headers={"Content-Type": "application/json"})
        live.client.post("/v1/chat/completions", content=SECRET)
        monkeypatch.setattr(live.engine.model, "outcome", lambda sequence: ValueError("it broke"))
        told(lines, live.ask(parts))
    finally:
        del live.client.headers["Authorization"]
    written = lines.getvalue()
    assert '"event": "failure"' in written and '"message": "it broke"' in written
    assert SECRET not in written and "base64" not in written and picture[40:80] not in written


def test_a_failure_shows_where_it_came_from(lines: io.StringIO) -> None:
    try:
        try:
            raise OSError("x" * 10_000)
        except OSError as error:
            raise ValueError("second") from error
    except ValueError:
        logging.getLogger("vlm_trt.serving").exception("failure", extra={"fields": {"id": "7"}})
    line = next(one for one in map(json.loads, lines.getvalue().splitlines()) if one.get("id") == "7")
    assert (line["error"], line["message"], line["id"]) == ("ValueError", "second", "7")
    assert "test_a_failure_shows" in line["trace"][-1] and line["cause"]["error"] == "OSError"
    assert len(line["cause"]["message"]) == 300


def test_every_record_is_one_line_of_json() -> None:
    record = logging.LogRecord("vlm_trt", logging.WARNING, "f", 1, "a\n%s", ("\u2028\x00é",), None)
    written = JsonLines().format(record)
    assert written.isascii() and written.splitlines() == [written] and json.loads(written)["level"] == "warning"


def test_unknown_fields_are_told_once_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """Names that clients make up neither fill the log nor the memory, and a sentence is no name."""
    caplog.set_level(logging.INFO, "vlm_trt.serving")
    tell = UnknownFields()
    for names in ({"min_tokens", "other"}, {"min_tokens"}, {"a sentence with blanks", "x" * 41, "", "é-"}):
        tell(names)
    for number in range(1_000):
        tell({f"made_up_{number}"})
    fields = [record.fields["field"] for record in caplog.records]  # type: ignore[attr-defined]
    assert fields[:2] == ["min_tokens", "other"] and len(fields) == 64 == len(set(fields))
