"""`vlm-trt serve` as a process: what it prints, how signals end it, with which exit code."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.serving.live import WAIT_S, until
from tests.serving.pictures import data_url, png_of

Start = Callable[..., "Process"]
LONG = {
    "model": "tiny", "messages": [{"role": "user", "content": "go on"}], "max_tokens": 200, "ignore_eos": True,
    "stream": True,
}  # fmt: skip
# Each step of the engine takes at least so long, so that an answer is surely under way when a signal comes.
_SLOW = (
    "import time, vlm_trt.runtime.scheduler as s; step = s.Scheduler.step\n"
    "s.Scheduler.step = lambda self: (step(self), time.sleep({seconds}))[0]\n"
)


class Process:
    def __init__(self, before: str, arguments: tuple[object, ...], **variables: str) -> None:
        code = f"{before}from vlm_trt import cli; cli.main({['serve', *map(str, arguments)]!r})"
        self.popen = subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        assert self.popen.stdout is not None
        self.said = [self.popen.stdout.readline() for _ in range(2)]
        self.url = self.said[0].removeprefix("listening on ").strip()
        self.error = ""

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def ended(self) -> int:
        """The exit code; what stood on standard error is in `error` then."""
        _, self.error = self.popen.communicate(timeout=WAIT_S)
        return self.popen.returncode

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.error.splitlines() if line.startswith("{")]


@pytest.fixture
def start(exported: Callable[..., Path]) -> Iterator[Start]:
    found: list[Process] = []

    def begin(*arguments: object, before: str = "", **variables: str) -> Process:
        bundle = ("--model", f"tiny={exported('ntk-256')}", "--unverified", "--backend", "cpu", "--threads", 1)
        found.append(Process(before, (*bundle, "--port", 0, *arguments), **variables))
        return found[-1]

    yield begin
    for one in found:
        one.popen.kill()
        one.popen.communicate()


def streaming(process: Process, count: int = 1) -> tuple[list[threading.Thread], list[str]]:
    """Streams under way, each in a thread that puts all of it into the list in the end."""
    texts: list[str] = []
    begun = threading.Semaphore(0)

    def read() -> None:
        text = ""
        url = f"{process.url}/v1/chat/completions"
        with (
            contextlib.suppress(httpx.HTTPError),
            httpx.stream("POST", url, json=LONG, timeout=WAIT_S, trust_env=False) as response,
        ):
            pieces = response.iter_text()
            text += next(pieces)
            begun.release()
            for piece in pieces:
                text += piece
        texts.append(text)

    threads = [threading.Thread(target=read) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert begun.acquire(timeout=WAIT_S)
    return threads, texts


def test_it_says_where_it_listens_and_how_to_ask(start: Start) -> None:
    """The line it prints is run as it is."""
    process = start()
    assert re.fullmatch(r"listening on http://127\.0\.0\.1:\d+\n", process.said[0])
    command = shlex.split(process.said[1])
    assert command[0] == "curl"
    done = subprocess.run([*command, "--silent"], capture_output=True, text=True, timeout=WAIT_S)
    assert json.loads(done.stdout)["choices"][0]["message"]["role"] == "assistant", done
    process.signal(signal.SIGTERM)
    assert process.ended() == 0
    assert "loading tiny: fp32 on onnxruntime-cpu ..." in process.error and "loaded in" in process.error
    assert "warning: fp32 graphs of" in process.error
    assert sorted(one["event"] for one in process.events()) == ["draining", "request"]


def test_with_a_key_the_line_works_too(start: Start, tmp_path: Path) -> None:
    process = start("--no-page", VLM_TRT_API_KEY="secret-of-the-test")
    assert '-H "Authorization: Bearer $VLM_TRT_API_KEY"' in process.said[1]
    done = subprocess.run(
        process.said[1].strip() + " --silent", shell=True, capture_output=True, text=True, timeout=WAIT_S,
        env={**os.environ, "VLM_TRT_API_KEY": "secret-of-the-test"},
    )  # fmt: skip
    assert json.loads(done.stdout)["object"] == "chat.completion", done
    assert httpx.get(f"{process.url}/v1/models", trust_env=False).status_code == 401
    assert httpx.get(f"{process.url}/", trust_env=False).status_code == 404
    process.signal(signal.SIGINT)
    assert process.ended() == 0 and "secret-of-the-test" not in process.error


def test_a_signal_while_busy_lets_answers_end(start: Start) -> None:
    process = start(before=_SLOW.format(seconds=0.005))
    threads, texts = streaming(process, 2)
    process.signal(signal.SIGTERM)
    until(lambda: httpx.get(f"{process.url}/health/ready", trust_env=False).status_code == 503)
    refused = httpx.post(f"{process.url}/v1/chat/completions", json=LONG, trust_env=False)
    assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
    for thread in threads:
        thread.join(WAIT_S)
    assert process.ended() == 0, process.error
    assert [text[-14:] for text in texts] == ["data: [DONE]\n\n"] * 2, (texts, process.error)


def test_answers_that_take_too_long_end_with_an_error(start: Start) -> None:
    process = start("--drain-timeout", 0.2, before=_SLOW.format(seconds=0.05))
    threads, texts = streaming(process)
    process.signal(signal.SIGTERM)
    for thread in threads:
        thread.join(WAIT_S)
    last = json.loads(texts[0].strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "draining" and process.ended() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(start: Start, number: int, code: int) -> None:
    process = start("--drain-timeout", 600, before=_SLOW.format(seconds=0.05))
    threads, texts = streaming(process)
    process.signal(number)
    until(lambda: httpx.get(f"{process.url}/health/ready", trust_env=False).status_code == 503)
    process.signal(number)
    assert process.ended() == code and process.events()[-1]["event"] == "ended at once"
    for thread in threads:
        thread.join(WAIT_S)
    assert "[DONE]" not in texts[0]


def test_after_a_kill_it_starts_again_on_the_same_port(start: Start) -> None:
    process = start()
    streaming(process)
    process.signal(signal.SIGKILL)
    assert process.ended() == -signal.SIGKILL
    again = start("--port", httpx.URL(process.url).port)
    assert again.url == process.url and httpx.get(f"{again.url}/health", trust_env=False).status_code == 200


def test_a_dead_engine_ends_the_process(start: Start) -> None:
    """With a code of its own, after saying why."""
    broken = (
        "import vlm_trt.runtime.scheduler as s\n"
        "def broken(self): raise RuntimeError('the GPU has fallen off the bus')\n"
        "s.Scheduler.step = broken\n"
    )
    process = start(before=broken)
    refused = httpx.post(f"{process.url}/v1/chat/completions", json=LONG, trust_env=False, timeout=WAIT_S)
    assert refused.status_code == 503 and "bus" not in refused.text
    assert process.ended() == 1
    (said,) = [one for one in process.events() if one["event"] == "engine ended"]
    assert said["level"] == "critical" and said["model"] == "tiny"
    assert said["message"] == "the GPU has fallen off the bus" and said["trace"]


def test_a_signal_while_it_loads_ends_it(exported: Callable[..., Path]) -> None:
    """By its own hand, which counts where it is the first process of a container: the system would not end that one."""
    loading = "import os, signal; from vlm_trt.commands import serve; serve._loaded = lambda *given: struck()\n"
    struck = "def struck():\n    os.kill(os.getpid(), signal.SIGTERM)\n    signal.pause()\n"
    words = ["serve", str(exported("ntk-256")), "--unverified", "--backend", "cpu", "--port", "0"]
    code = f"{loading}{struck}from vlm_trt import cli; cli.main({words!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (143, "vlm-trt: ended by SIGTERM"), done


def test_a_picture_that_takes_all_memory_fails_alone(start: Start) -> None:
    """The system gives no more memory than 96 MiB beyond what the server has; 36 megapixels take more."""
    bounded = (
        "import re, resource; from pathlib import Path; from vlm_trt.serving.server import Server; run = Server.run\n"
        "def bounded(self, *given):\n"
        "    has = int(re.search(r'VmSize:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) << 10\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (has + (96 << 20),) * 2)\n"
        "    return run(self, *given)\n"
        "Server.run = bounded\n"
    )
    process = start(before=bounded, MALLOC_ARENA_MAX="1")

    def asked(side: int) -> httpx.Response:
        url = data_url(png_of(side, side, bytes(side * (3 * side + 1))))
        picture = {"type": "image_url", "image_url": {"url": url}}
        messages = [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]
        body = {"model": "tiny", "messages": messages, "max_tokens": 2}
        return httpx.post(f"{process.url}/v1/chat/completions", json=body, trust_env=False, timeout=WAIT_S)

    assert asked(100).status_code == 200
    refused = asked(6_000)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), refused.text
    assert refused.json()["error"]["code"] == "memory_full"
    assert asked(100).status_code == 200
    process.signal(signal.SIGTERM)
    assert process.ended() == 0, process.error
    assert [one["error"] for one in process.events() if one["event"] == "failure"] == ["MemoryError"]


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(exported: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = ["serve", str(exported("ntk-256")), "--unverified", "--backend", "cpu", "--port", str(port)]
        done = subprocess.run(
            [sys.executable, "-m", "vlm_trt.cli", *command], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S
        )
    assert done.returncode == 9 and f"--port {port} of 127.0.0.1 cannot be used: Address already in use" in done.stderr
    assert "loading" not in done.stderr


def test_what_is_not_installed_is_named() -> None:
    code = "import sys; sys.modules['fastapi'] = None; from vlm_trt import cli; cli.main(['serve', 'bundle'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("vlm-trt: fastapi is not installed, and serve needs it; install what it needs: pip ")
