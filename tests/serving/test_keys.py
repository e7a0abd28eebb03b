"""Keys: every route asks for one, whatever routes there will be."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from openai import AuthenticationError

from tests.serving.live import Live, serving, until
from vlm_trt.bundle.errors import UsageError
from vlm_trt.serving import keys
from vlm_trt.serving.keys import OPEN_PATHS, VARIABLE, is_known, key_digests
from vlm_trt.serving.settings import Settings

KEY = "tests-own-key"


@pytest.fixture(scope="module")
def locked(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# of the night shift\nsecond-key\n\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, KEY)
        settings = Settings(key_digests=key_digests(file))
    with serving({"tiny": exported("ntk-256")}, settings) as found:
        yield found


def test_every_route_but_the_open_ones_asks_for_a_key(locked: Live) -> None:
    """Told from the application's own list, so that a route which somebody adds is in it."""
    paths = {route.path for route in locked.server._uvicorn.config.loaded_app.routes}  # type: ignore[union-attr]
    assert {"/v1/chat/completions", "/v1/completions", "/metrics", "/version", "/health"} <= paths
    for path in (*sorted(paths), "/docs", "/nope", "//health", "/health/", "/Health", "/v1/../health"):
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            response = locked.client.request(method, path)
            assert (response.status_code == 401) == (response.request.url.path not in OPEN_PATHS), (method, path)


def test_whoever_has_a_key_is_let_in(locked: Live) -> None:
    for key in (KEY, "second-key"):
        locked.key = key
        assert [model.id for model in locked.openai().models.list()] == ["tiny"]
    locked.key = "other"
    with pytest.raises(AuthenticationError) as caught:
        locked.openai().models.list()
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer # of the night shift",
     f"Bearer {KEY} second-key"],
)  # fmt: skip
def test_what_is_no_key_is_refused(locked: Live, header: str) -> None:
    response = locked.client.get("/v1/models", headers={"Authorization": header} if header else {})
    error = locked.refusal(response, 401)
    assert error["type"] == "authentication_error" and KEY not in response.text
    assert response.headers["www-authenticate"] == "Bearer"


def test_a_key_is_asked_for_before_a_body_is_read(locked: Live) -> None:
    response = locked.client.post("/v1/chat/completions", content=b"x" * 100_000)
    assert response.status_code == 401


def test_so_many_requests_of_a_key_are_answered_at_once(exported: Callable[..., Path]) -> None:
    """Another key is asked as before, and what has ended counts no more; a look at the models never does."""
    digests = tuple(sha256(key.encode()).digest() for key in ("one", "two"))
    with serving({"tiny": exported("ntk-256")}, Settings(key_digests=digests, max_per_key=2)) as found:
        one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        long = {**body, "max_tokens": 200, "ignore_eos": True, "stream": True}
        scheduler = found.engine.model.scheduler
        with pytest.MonkeyPatch.context() as patch, ExitStack() as streams:
            step = scheduler.step
            patch.setattr(scheduler, "step", lambda: (step(), sleep(0.01)))
            for _ in range(2):
                stream = found.client.stream("POST", "/v1/chat/completions", json=long, headers=one)
                assert streams.enter_context(stream).status_code == 200
            refused = found.client.post("/v1/chat/completions", json=body, headers=one)
            error = found.refusal(refused, 429)
            assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
            assert error["message"] == "2 requests of this key are being answered; ask again when one has ended"
            assert refused.headers["retry-after"] == "1"
            assert found.client.get("/v1/models", headers=one).status_code == 200
            assert found.client.post("/v1/chat/completions", json=body, headers=two).status_code == 200
        found.idle()
        until(lambda: found.client.post("/v1/chat/completions", json=body, headers=one).status_code == 200)
        assert (
            'requests_rejected_total{reason="rate_limit_exceeded"} 1.0'
            in found.client.get("/metrics", headers=one).text
        )


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every digest, also behind the one that fits, by the function that is made for it."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return a == b

    monkeypatch.setattr(keys, "compare_digest", compare)
    monkeypatch.setenv(VARIABLE, "one")
    digests = key_digests(None) * 3
    assert is_known("one", digests) and len(compared) == 3
    assert not is_known("two", digests) and len(compared) == 6
    assert not is_known("\udcff", digests)
    assert all(len(a) == len(b) == 32 for a, b in compared)


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "holds no key"), (b"# only this\n\n", "holds no key"), (b"a b\n", "holds blanks"), (b"\xc3\xa4\n", "ASCII")],
)
def test_a_file_of_keys_that_is_none_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(UsageError, match=why):
        key_digests(tmp_path / "keys")


def test_a_file_of_keys_that_is_not_there_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("nothing", "pipe"):
        with pytest.raises(UsageError, match=r"--api-key-file .* cannot be read"):
            key_digests(tmp_path / name)


def test_without_keys_nobody_is_asked(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert key_digests(None) == ()
    headers: dict[str, Any] = {"Authorization": "Bearer whatever"}
    assert live.client.get("/v1/models", headers=headers).status_code == 200
