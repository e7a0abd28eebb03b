"""The backend over a stand-in for Triton's module: what the real server cannot be brought to do. Engines are real."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event as Flag
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.serving.live import WAIT_S, until
from tests.triton_backend import stand_in
from tests.triton_backend.stand_in import InferenceRequest, arguments, unloaded
from vlm_trt.triton_backend.backend import Backend
from vlm_trt.triton_backend.settings import ModelSettings

LONG = b'{"temperature": 0, "max_tokens": 400, "ignore_eos": true}'
SHORT = b'{"temperature": 0, "max_tokens": 4, "ignore_eos": true}'


@pytest.fixture
def made(exported: Callable[..., Path], tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    found: list[Backend] = []

    def make(**more: Any) -> Backend:
        settings = ModelSettings(str(exported("ntk-256")), backend="cpu", threads=1, unverified=True, **more)
        found.append(Backend(stand_in, arguments(tmp_path, settings)))
        return found[-1]

    yield make
    for backend in found:
        backend.finalize()


def ask(backend: Backend, sampling: bytes = SHORT, **more: Any) -> InferenceRequest:
    request = InferenceRequest(sampling_parameters=[sampling], **more)
    backend.execute([request])
    return request


def held(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Flag:
    """The engine's next step waits until the flag is set."""
    go_on, step = Flag(), backend._loop.model.scheduler.step
    monkeypatch.setattr(backend._loop.model.scheduler, "step", lambda: (go_on.wait(WAIT_S), step())[1])
    return go_on


def test_what_cannot_be_sent_to_one_is_no_matter_of_the_others(made: Callable[..., Backend]) -> None:
    backend = made()
    lost = InferenceRequest(sampling_parameters=[LONG], stream=[True])
    lost.sender.fails = True
    backend.execute([lost])
    assert not ask(backend).sender.until_the_end()[-1].error
    until(lambda: backend._admission._requests == backend._admission._bytes == 0)
    until(lambda: not backend._loop._in_flight)


def test_an_answer_that_cannot_be_measured_is_sent(made: Callable[..., Backend]) -> None:
    """As where the server has taken its metrics away."""
    backend = made()
    backend._responder.metrics = object()  # type: ignore[assignment]
    assert not ask(backend, stream=[True]).sender.until_the_end()[-1].error
    until(lambda: backend._responder.metrics is None)
    assert ask(backend, b"{").sender.until_the_end()[-1].error
    until(lambda: not backend._responder._open and backend._admission._requests == 0)


def test_what_cannot_be_written_as_a_response_is_told_as_a_failure(
    made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = made()

    def broken(*_: Any) -> None:
        raise ValueError("no shared memory is left")

    monkeypatch.setattr(backend._responder, "_response", broken)
    (response,) = ask(backend).sender.until_the_end()
    assert response.error and response.error.code == stand_in.TritonError.INTERNAL
    assert response.error.message.startswith("the server failed at this request; its log tells why, under ")
    until(lambda: backend._admission._requests == 0)


def test_one_that_leaves_before_it_is_prepared_is_never_asked(
    made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, go_on = made(), Flag()
    for _ in range(2):  # both threads of the pool are busy
        backend._pool.submit(go_on.wait, WAIT_S)
    request = ask(backend)
    request.sender.cancelled = True
    (response,) = request.sender.until_the_end()
    assert response.error and response.error.code == stand_in.TritonError.CANCELLED
    monkeypatch.setattr(backend._loop, "submit", lambda *_: pytest.fail("it was asked"))
    go_on.set()
    backend._pool.submit(lambda: None).result(WAIT_S)
    assert backend._admission._requests == 0 and request.sender.sent.empty()


def test_bytes_that_requests_hold_are_bounded(made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    """All together; one alone may hold what the server's own limit lets pass."""
    backend = made()
    backend._admission._most_bytes = 200
    go_on = held(backend, monkeypatch)
    first, second = ask(backend, text=b"a" * 300), ask(backend, text=b"a" * 300)
    (refusal,) = second.sender.until_the_end()
    assert refusal.error and refusal.error.code == stand_in.TritonError.UNAVAILABLE
    assert refusal.error.message == "the server holds as many pictures as it may; ask again later"
    go_on.set()
    assert not first.sender.until_the_end()[-1].error


def test_a_stuck_engine_is_not_ready(made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = made()
    assert backend.is_ready()
    go_on = held(backend, monkeypatch)
    request = ask(backend)
    until(lambda: backend._loop.state().stuck_s > 0)
    loop = type(backend._loop)
    monkeypatch.setattr(loop, "state", lambda self, state=loop.state: replaced(state(self)))
    assert not backend.is_ready()
    monkeypatch.undo()
    go_on.set()
    request.sender.until_the_end()
    until(backend.is_ready)


def replaced(state: Any) -> Any:
    from dataclasses import replace

    return replace(state, stuck_s=61.0)


def test_a_dead_engine_that_cannot_be_unloaded_refuses_and_is_not_ready(
    made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a server that was not started with --model-control-mode explicit."""
    backend = made()
    unloaded.clear()

    def broken() -> None:
        raise RuntimeError("the GPU has fallen off the bus")

    monkeypatch.setattr(backend._loop.model.scheduler, "step", broken)
    for _ in range(2):
        (response,) = ask(backend).sender.until_the_end()
        assert response.error and response.error.code == stand_in.TritonError.UNAVAILABLE
        assert response.error.message == "the engine has failed and the model is unloaded; ask another server"
    until(lambda: unloaded == ["tiny"])
    assert not backend.is_ready()


def test_its_end_is_bounded_and_takes_nothing_new(
    made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that never returns is left behind; what waits for it is not told of, as the process ends next."""
    from vlm_trt.triton_backend import backend as module

    backend = made()
    go_on = held(backend, monkeypatch)
    ask(backend, LONG)
    until(lambda: backend._loop.state().stuck_s > 0)
    monkeypatch.setattr(module, "_END_S", 0.1)
    monkeypatch.setattr(module, "LIMITS", replaced_limits())
    backend.finalize()
    assert not backend.is_ready()
    assert not backend._responder._thread.is_alive()
    go_on.set()


def replaced_limits() -> Any:
    from dataclasses import replace

    from vlm_trt.triton_backend.settings import LIMITS

    return replace(LIMITS, drain_timeout_s=0.1)


def test_an_answer_under_way_ends_before_the_model(made: Callable[..., Backend]) -> None:
    backend = made()
    request = ask(backend, LONG)
    until(lambda: backend._loop.state().running == 1)
    backend.finalize()
    assert not request.sender.until_the_end()[-1].error


def test_a_failure_of_ours_is_told_by_its_number_alone(
    made: Callable[..., Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = made()

    def broken(*_: Any) -> None:
        raise KeyError("/secret/path 0x7f")

    monkeypatch.setattr(backend._loop.model, "build_prompt", broken)
    (response,) = ask(backend).sender.until_the_end()
    assert response.error and response.error.code == stand_in.TritonError.INTERNAL
    assert response.error.message.startswith("the server failed at this request; its log tells why, under ")
    assert "secret" not in response.error.message


def test_it_needs_nothing_of_the_http_server() -> None:
    """The extra `serve` is not installed where Triton runs."""
    code = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'uvicorn', 'httpx', 'prometheus_client', 'torch', 'onnx'):\n"
        "    sys.modules[name] = None\n"
        "import vlm_trt.triton_backend.backend, vlm_trt.triton_backend.repository\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
