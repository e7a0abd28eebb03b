"""A Ray cluster of two nodes on this machine, which ask each other for a token, and what a test does to it."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.conftest import ROOT
from tests.serving.live import until

WAIT_S = 180.0  # for what takes seconds on a machine that is not busy
_MEMORY_BYTES = 100 << 20  # of a node's object store, which lies in memory; answers are a few kB


# In every process: the engine fails for good where a file says its process's number.
_FAULTS = """
import os, pathlib, sys
def broken(self, *given):
    if FILE.exists() and FILE.read_text() == str(os.getpid()):
        raise RuntimeError("the GPU has fallen off the bus")
    return step(self, *given)
FILE = pathlib.Path({file!r})
if "default_worker.py" in " ".join(sys.orig_argv):
    from vlm_trt.runtime import scheduler
    step, scheduler.Scheduler.step = scheduler.Scheduler.step, broken
"""

# Ends when both nodes belong to the cluster.
_JOINED = """
import ray, sys, time
ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
while sum(node["Alive"] for node in ray.nodes()) < 2:
    time.sleep(0.2)
"""


@dataclass(frozen=True)
class Cluster:
    """It runs."""

    address: str
    port: int  # of its proxies
    dashboard: int  # its port
    broken: Path  # the file of _FAULTS
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def python(self, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        """What Python says in a process of its own."""
        return run([sys.executable, *map(str, words)], self.environment | variables)

    def serve(self, models: dict[str, Path], *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        """`vlm-trt serve --ray` over bundles that nobody verified, which returns when they answer."""
        return self.python(*self.serving(models), *words, **variables)

    def serving(self, models: dict[str, Path]) -> list[str]:
        """The words of that command, behind Python's name."""
        named = [part for name, path in models.items() for part in ("--model", f"{name}={path}")]
        own = ("--port", str(self.port), "--unverified", "--backend", "cpu", "--threads", "1")
        return ["-m", "vlm_trt.cli", "serve", *named, "--ray", "--ray-address", self.address, "--detach", *own]

    def engines(self, model: str) -> list[int]:
        """Processes of its engines."""
        return [one.pid for one in self._processes(f"Engine-{model}")]

    def _processes(self, name: str) -> Iterator[psutil.Process]:
        token = self.environment["RAY_AUTH_TOKEN"]
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if name in " ".join(process.cmdline()) and process.environ().get("RAY_AUTH_TOKEN") == token:
                    yield process


def run(command: Sequence[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


@contextmanager
def two_nodes() -> Iterator[Cluster]:
    """Inside, it runs: each node with one CPU, so that an engine of one thread fills it."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: names of sockets lie in it
    gcs, proxies, dashboard = free_port(), free_port(), free_port()
    (folder / "sitecustomize.py").write_text(_FAULTS.format(file=str(folder / "broken")))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DISABLE_DOCKER_CPU_WARNING": "1",
        # On a busy machine Ray would give up what is only slow.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5",
    }
    cluster = Cluster(f"127.0.0.1:{gcs}", proxies, dashboard, folder / "broken", environment)
    head = (
        "--head",
        f"--port={gcs}",
        f"--temp-dir={folder}",
        f"--dashboard-port={dashboard}",
        "--include-dashboard=true",
    )
    nodes = [started(cluster, head)]
    try:
        until(lambda: listens(gcs), WAIT_S)
        nodes.append(started(cluster, [f"--address={cluster.address}"]))
        joined = cluster.python("-c", _JOINED, cluster.address)
        assert joined.returncode == 0, joined.stderr
        yield cluster
    finally:
        for node in reversed(nodes):
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                node.wait(5)
            with suppress(ProcessLookupError):
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
        for process in cluster._processes(""):
            if process.pid != os.getpid():
                process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def started(cluster: Cluster, words: Sequence[str]) -> "subprocess.Popen[bytes]":
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "start", "--block", "--num-cpus=1", "--num-gpus=0", f"--object-store-memory={_MEMORY_BYTES}"]
    return subprocess.Popen(
        [*command, *words], env=cluster.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0
