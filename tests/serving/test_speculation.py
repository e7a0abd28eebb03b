"""Drafts behind the server: on or off for all of it, and the same answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.live import Live, serving, streamed
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.speculation import Pays
from vlm_trt.serving.settings import Settings

TALK = [{"role": "user", "content": "one two three one two three one two three"}]
LONG = {"model": "tiny", "temperature": 0, "max_tokens": 60, "ignore_eos": True, "logprobs": True}


class Always(Pays):
    """However busy the machine is."""

    def worth_trying(self) -> bool:
        return True


def asked(live: Live, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What the scheduler is asked from now on."""
    found: list[Request] = []
    scheduler = live.engine.model.scheduler
    submit = scheduler.submit

    def noted(request: Request, *others: Any) -> Any:
        found.append(request)
        return submit(request, *others)

    monkeypatch.setattr(scheduler, "submit", noted)
    return found


def test_the_switch_is_for_every_request(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """And answers, whole and in pieces, with the tokens' probabilities, are the same with drafts and without."""
    answers = []
    for on in (True, False):
        with serving({"tiny": exported("ntk-256")}, Settings(speculation=on)) as live:
            live.engine.model.generator._pays = Always()
            requests = asked(live, monkeypatch)
            whole = live.client.post("/v1/chat/completions", json={**LONG, "messages": TALK}).json()
            parts = streamed(live.client.post("/v1/chat/completions", json={**LONG, "messages": TALK, "stream": True}))
            text = {name: value for name, value in LONG.items() if name != "logprobs"}
            text_alone = live.client.post("/v1/completions", json={**text, "prompt": "one two one two one"}).json()
        assert [one.speculation for one in requests] == [on] * 3
        pieces = [part["choices"][0] for part in parts[:-1] if part["choices"]]
        said = "".join(piece["delta"].get("content") or "" for piece in pieces)
        told = [one["token"] for piece in pieces for one in (piece.get("logprobs") or {"content": []})["content"]]
        choice = whole["choices"][0]
        assert said == choice["message"]["content"] and told == [one["token"] for one in choice["logprobs"]["content"]]
        assert whole["usage"]["completion_tokens"] == 60 == len(told)
        answers.append((said, told, text_alone["choices"][0]["text"]))
    assert answers[0] == answers[1]
