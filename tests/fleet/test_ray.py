"""Bundles on a real Ray cluster of two nodes: answers, engines that die or hang, upgrades, overload. Minutes."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from tests.conftest import ROOT
from tests.fleet.ray_cluster import WAIT_S, Cluster, free_port, listens, run, two_nodes
from tests.serving.live import until
from tests.serving.pictures import data_url, encoded
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.options import Options

CHAT = "/v1/chat/completions"
ASKED = "what is in the picture?"


pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster(exported: Callable[..., Path]) -> Iterator[Cluster]:
    """Two engines of one model, an engine on each node."""
    with two_nodes() as found:
        served = found.serve({"tiny": exported("ntk-256")}, "--replicas", 2)
        assert served.returncode == 0, served.stderr
        assert served.stdout.startswith(f"listening on {found.url}\ncurl {found.url}/v1/chat/completions ")
        yield found


def asks(content: Any = "hello", **more: Any) -> dict[str, Any]:
    return {
        "model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0,
        "ignore_eos": True, **more,
    }  # fmt: skip


def shown(seed: int, text: str = ASKED) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": data_url(encoded(seed=seed))}}
    return [picture, {"type": "text", "text": text}]


class Load:
    """Many clients at once; what came of each request."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.answered: list[str] = []
        self.failed: list[str] = []
        self.statuses: list[int] = []

    async def one(self, client: httpx.AsyncClient, **more: Any) -> None:
        text, ended = "", False
        try:
            async with client.stream("POST", f"{self._cluster.url}{CHAT}", json=asks(stream=True, **more)) as response:
                self.statuses.append(response.status_code)
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        ended = True
                    elif line.startswith('data: {"error"'):
                        self.failed.append(line)
                        return
                    elif line.startswith("data: "):
                        text += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
        except httpx.HTTPError as error:
            self.failed.append(repr(error))
            return
        (self.answered if ended else self.failed).append(text)


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=WAIT_S, trust_env=False, limits=httpx.Limits(max_connections=200))


def test_an_answer_is_that_of_the_bundle_alone(cluster: Cluster, exported: Callable[..., Path]) -> None:
    model = load(exported("ntk-256"), backend="cpu", threads=1, allow_unverified=True)
    options = Options(greedy=True, max_new_tokens=8, ignore_eos=True)
    alone = model.generate(ASKED, [encoded(seed=3)], options).text
    openai = OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=WAIT_S)
    asked: dict[str, Any] = asks(shown(3))
    extra = {"extra_body": {"ignore_eos": asked.pop("ignore_eos")}}
    assert openai.chat.completions.create(**asked, **extra).choices[0].message.content == alone
    pieces = openai.chat.completions.create(**asked, **extra, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == alone
    (described,) = openai.models.list()
    assert described.id == "tiny"


def test_a_bad_request_ends_at_the_door(cluster: Cluster) -> None:
    refused = httpx.post(f"{cluster.url}{CHAT}", json=asks(n=3), timeout=WAIT_S)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    unknown = httpx.post(f"{cluster.url}{CHAT}", json=asks(model="other"), timeout=WAIT_S)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    refused = httpx.post(f"{cluster.url}{CHAT}", json=asks(picture), timeout=WAIT_S)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_image")
    assert httpx.get(f"{cluster.url}/health", timeout=WAIT_S).json() == {"status": "ready"}


def test_questions_about_one_picture_meet_the_engine_that_has_it(cluster: Cluster) -> None:
    for seed in range(20, 26):
        for text in ("what is this?", "where is it?", "why?"):
            answer = httpx.post(f"{cluster.url}{CHAT}", json=asks(shown(seed, text)), timeout=WAIT_S).json()
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert (cached > 200) == (text != "what is this?"), (seed, text, answer["usage"])


def test_one_page_has_the_metrics_of_all(cluster: Cluster) -> None:
    with httpx.stream("POST", f"{cluster.url}{CHAT}", json=asks(stream=True), timeout=WAIT_S) as response:
        response.read()
    page = httpx.get(f"{cluster.url}/metrics", timeout=WAIT_S).text
    first = 'vlm_trt:time_to_first_token_seconds_count{model_name="tiny",replica="ingress"} '
    assert [line for line in page.splitlines() if line.startswith(first) and not line.endswith(" 0.0")], page
    up = [line for line in page.splitlines() if line.startswith("vlm_trt:engine_up{") and "ingress" not in line]
    assert len(up) == 2, page
    assert all(line.endswith(" 1.0") for line in up)


def test_what_waits_beyond_the_queue_is_refused_before_it_begins(cluster: Cluster) -> None:
    load = Load(cluster)

    async def many() -> None:
        async with client() as asking:
            await asyncio.gather(*(load.one(asking, max_tokens=100) for _ in range(150)))

    asyncio.run(many())
    assert set(load.statuses) == {200, 503}
    assert len(load.answered) == load.statuses.count(200)


def test_a_killed_engine_takes_no_more_than_it_was_answering(cluster: Cluster) -> None:
    load = Load(cluster)
    victim, other = cluster.engines("tiny")

    async def killed() -> None:
        async with client() as asking:
            streams = [asyncio.ensure_future(load.one(asking, max_tokens=150)) for _ in range(6)]
            await asyncio.sleep(0.5)
            os.kill(victim, signal.SIGKILL)
            later = [load.one(asking) for _ in range(20)]
            await asyncio.gather(*streams, *later)

    asyncio.run(killed())
    assert set(load.statuses) == {200}
    assert len(load.answered) + len(load.failed) == 26
    assert len(load.failed) <= 4, load.failed  # what one engine has in its slots and before them
    assert all("engine_lost" in one for one in load.failed), load.failed
    until(lambda: len(cluster.engines("tiny")) == 2 and victim not in cluster.engines("tiny"), WAIT_S)
    assert other in cluster.engines("tiny")


def test_a_bundle_takes_the_place_of_another_without_a_lost_request(
    cluster: Cluster, exported: Callable[..., Path]
) -> None:
    before, load, upgraded = set(cluster.engines("tiny")), Load(cluster), asyncio.Event()

    async def asked_on() -> None:
        async with client() as asking:
            while not upgraded.is_set():
                await load.one(asking)

    async def upgrade() -> None:
        try:
            served = await asyncio.to_thread(cluster.serve, {"tiny": exported("image-224")}, "--replicas", 2)
            assert served.returncode == 0, served.stderr
        finally:
            upgraded.set()

    async def both() -> None:
        await asyncio.gather(upgrade(), asked_on(), asked_on())

    asyncio.run(both())
    assert load.failed == []
    assert set(load.statuses) == {200}
    assert not before & set(cluster.engines("tiny"))
    model = load_alone(exported("image-224"))
    answer = httpx.post(f"{cluster.url}{CHAT}", json=asks(), timeout=WAIT_S).json()
    assert answer["choices"][0]["message"]["content"] == model


def load_alone(bundle: Path) -> str:
    model = load(bundle, backend="cpu", threads=1, allow_unverified=True)
    return model.generate("hello", options=Options(greedy=True, max_new_tokens=8, ignore_eos=True)).text


def test_more_gpus_than_there_are_is_one_sentence(cluster: Cluster, exported: Callable[..., Path]) -> None:
    served = cluster.serve({"tiny": exported("ntk-256")}, "--gpus-per-replica", 1, "--replicas", 3)
    assert (served.returncode, served.stdout) == (8, "")
    assert "3 engines take 3 GPUs, and the cluster has 0; ask for fewer with --replicas or --gpus-per-replica" in (
        served.stderr
    )


def test_a_bundle_that_the_nodes_lack_is_one_sentence(
    cluster: Cluster, exported: Callable[..., Path], tmp_path: Path
) -> None:
    own = tmp_path / "own"  # where only this command sees it, as on a disk of its own
    own.mkdir()
    mounting = ["unshare", "--mount", "--map-root-user", "sh", "-c", 'mount --bind "$0" "$1" && shift && exec "$@"']
    command = [sys.executable, *cluster.serving({"tiny": own})]
    served = run([*mounting, str(exported("ntk-256")), str(own), *command], cluster.environment)
    if "Operation not permitted" in served.stderr:
        pytest.skip(f"needs a mount namespace, which this machine does not give: {served.stderr}")
    assert served.returncode == 7, served.stderr
    assert f"the bundle {own} of tiny is not on every node: " in served.stderr
    assert "cannot read it; copy it there, or mount it under the same path" in served.stderr


def test_a_stranger_is_not_let_in(cluster: Cluster, exported: Callable[..., Path]) -> None:
    served = cluster.serve({"tiny": exported("ntk-256")}, RAY_AUTH_TOKEN="0" * 64)
    assert served.returncode == 6, served.stderr
    assert f"no Ray cluster lets this machine in at {cluster.address}" in served.stderr


# An application whose engines come and go, and are given up, in less time than anybody would give them.
_IMPATIENT = """
import sys
from vlm_trt.fleet import cluster
from vlm_trt.fleet.app_args import AppArgs
from vlm_trt.fleet.sizes import Sizes
bundle, address, port, keys, least = sys.argv[1:]
engine = Sizes.engine
def impatient(self, slots):
    found = engine(self, slots) | {"health_check_period_s": 1.0, "health_check_timeout_s": 3.0}
    found.get("autoscaling_config", {}).update(upscale_delay_s=1.0, downscale_delay_s=1.0, look_back_period_s=3.0)
    return found
Sizes.engine = impatient
args = AppArgs({"tiny": bundle}, backend="cpu", threads=1, unverified=True, api_key_file=keys)
with cluster.cluster(address):
    cluster.run(args, Sizes(int(least), 2), {"tiny": 2}, "127.0.0.1", int(port))
"""
_KEY = {"Authorization": "Bearer secret"}


@pytest.fixture
def deploy(cluster: Cluster, exported: Callable[..., Path], tmp_path: Path) -> Callable[[int], None]:
    """A function: the fewest engines of two → that application, which asks for a key."""
    keys = tmp_path / "keys.txt"
    keys.write_text("secret\n")

    def deployed(least: int) -> None:
        words = (exported("ntk-256"), cluster.address, cluster.port, keys, least)
        done = cluster.python("-c", _IMPATIENT, *words)
        assert done.returncode == 0, done.stderr
        until(lambda: len(cluster.engines("tiny")) == least, WAIT_S)  # those before them have ended

    return deployed


def test_an_engine_that_has_failed_is_replaced_and_keys_are_asked_for(
    cluster: Cluster, deploy: Callable[[int], None]
) -> None:
    deploy(2)
    assert httpx.post(f"{cluster.url}{CHAT}", json=asks(), timeout=WAIT_S).status_code == 401
    victim, _ = cluster.engines("tiny")
    cluster.broken.write_text(str(victim))  # its process goes on and answers Ray; its engine does not
    with httpx.Client(timeout=WAIT_S, trust_env=False, headers=_KEY) as client:
        asked = [client.post(f"{cluster.url}{CHAT}", json=asks(f"question {at}")).status_code for at in range(12)]
        assert set(asked) <= {200, 503}, asked
        assert 503 in asked, asked
        until(lambda: len(cluster.engines("tiny")) == 2 and victim not in cluster.engines("tiny"), WAIT_S)
        answers = [client.post(f"{cluster.url}{CHAT}", json=asks(f"question {at}")) for at in range(12)]
    assert [one.status_code for one in answers] == [200] * 12


def test_engines_are_added_while_requests_wait_and_taken_away_after(
    cluster: Cluster, deploy: Callable[[int], None]
) -> None:
    deploy(1)
    load, second = Load(cluster), threading.Event()
    watching = threading.Thread(
        target=lambda: (until(lambda: len(cluster.engines("tiny")) == 2, WAIT_S), second.set()), daemon=True
    )
    watching.start()

    async def asked_on() -> None:
        async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False, headers=_KEY) as asking:
            while watching.is_alive():  # more than the slots of one
                await asyncio.gather(*(load.one(asking, max_tokens=100) for _ in range(12)))

    asyncio.run(asked_on())
    assert second.is_set(), "no engine was added"
    assert load.failed == []
    assert set(load.statuses) == {200}
    until(lambda: len(cluster.engines("tiny")) == 1, WAIT_S)


def test_serve_deploy_takes_the_file_that_is_written(
    cluster: Cluster, exported: Callable[..., Path], tmp_path: Path
) -> None:
    file, bundle = tmp_path / "serve.yaml", exported("ntk-256")
    own = ("--port", cluster.port, "--unverified", "--backend", "cpu", "--threads", 1, "--replicas", 2)
    made = cluster.python("-m", "vlm_trt.cli", "export-serving", "ray", bundle, "-o", file, *own)
    assert made.returncode == 0, made.stderr
    serve = Path(sys.executable).with_name("serve")
    deployed = run(
        [str(serve), "deploy", "-a", f"http://127.0.0.1:{cluster.dashboard}", str(file)], cluster.environment
    )
    assert deployed.returncode == 0, deployed.stderr

    def answers() -> bool:
        asked = httpx.post(f"{cluster.url}{CHAT}", json=asks(model=bundle.name), timeout=WAIT_S)
        return asked.status_code == 200

    until(answers, WAIT_S)


def test_a_bundle_that_nobody_verified_is_refused_as_by_one_server(
    cluster: Cluster, exported: Callable[..., Path]
) -> None:
    words = [word for word in cluster.serving({"tiny": exported("ntk-256")}) if word != "--unverified"]
    served = cluster.python(*words)
    assert (served.returncode, served.stdout) == (5, ""), served.stderr
    assert "the engines could not be started: " in served.stderr
    assert "graphs are not verified, so their answers cannot be trusted; run `vlm-trt verify" in served.stderr


def test_a_cluster_of_its_own_lets_answers_end_and_ends_with_the_command(exported: Callable[..., Path]) -> None:
    port = free_port()
    own = ["--ray", "--port", str(port), "--unverified", "--backend", "cpu", "--threads", "1"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    serving = subprocess.Popen(
        [sys.executable, "-m", "vlm_trt.cli", "serve", f"--model=tiny={exported('ntk-256')}", *own],
        cwd=ROOT, env=clean, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert serving.stdout is not None
    said = serving.stdout.readline()
    if said:
        assert said == f"listening on http://127.0.0.1:{port}\n"
        url, long = f"http://127.0.0.1:{port}{CHAT}", asks(stream=True, max_tokens=150)
        with httpx.stream("POST", url, json=long, timeout=WAIT_S) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: {")
            serving.send_signal(signal.SIGTERM)
            assert "data: [DONE]" in list(lines)  # what was on its way ends by itself
    _, errors = serving.communicate(timeout=WAIT_S)
    assert said, errors
    assert serving.returncode == 0, errors
    assert errors.splitlines()[-1] == "signal 15: taking nothing new, ending what is on its way ..."
    assert not listens(port)
