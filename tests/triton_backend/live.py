"""A real Triton server for the tests: made by scripts/triton_server, started here on ports of its own."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sysconfig
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.serving.live import WAIT_S, until
from tests.triton_backend.client import PACKAGES, grpcclient

# In the process of a model: each step of the engine takes long while there is a file called `slow`, and fails for good
# once there is one called `broken`.
_FAULTS = """
import pathlib, time
from vlm_trt.runtime import scheduler
step, folder = scheduler.Scheduler.step, pathlib.Path({folder!r})
def stepping(self, *given):
    if (folder / "broken").exists():
        raise RuntimeError("the GPU has fallen off the bus")
    if (folder / "slow").exists():
        time.sleep(0.05)
    return step(self, *given)
scheduler.Scheduler.step = stepping
"""


@dataclass(frozen=True)
class Said:
    """Everything that came back for one request."""

    texts: list[str] = field(default_factory=list)
    outputs: dict[str, list[Any]] = field(default_factory=dict)  # the others, of each response
    error: str | None = None
    code: str | None = None  # gRPC's

    @property
    def text(self) -> str:
        assert self.error is None, self.error
        return "".join(self.texts)


class Stream:
    """One connection for requests whose responses come one by one."""

    def __init__(self, server: "TritonServer") -> None:
        self.client = grpcclient.InferenceServerClient(server.grpc)
        self.came: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self.client.start_stream(
            lambda result, error: self.came.put((result, error)), headers={"triton_grpc_error": "true"}
        )  # an error has its code so, and ends the stream

    def ask(self, model: str, text: str | None, *pictures: bytes, stream: bool = True, **more: Any) -> None:
        self.client.async_stream_infer(
            model,
            inputs_of(text, pictures, stream=stream, **{k: v for k, v in more.items() if k not in ("timeout",)}),
            enable_empty_final_response=True,
            **({"timeout": more["timeout"]} if "timeout" in more else {}),
        )

    def next(self) -> tuple[Any, Any]:
        return self.came.get(timeout=WAIT_S)

    def until_the_end(self) -> Said:
        """All of one request; the stream carries one at a time."""
        said = Said()
        while True:
            result, error = self.next()
            if error is not None:
                return Said(said.texts, said.outputs, error.message(), error.status())
            if (texts := result.as_numpy("text_output")) is not None:
                said.texts.append(texts[0].decode())
            for name in ("finish_reason", "num_input_tokens", "num_output_tokens"):
                if (values := result.as_numpy(name)) is not None:
                    said.outputs.setdefault(name, []).append(values[0])
            if result.get_response().parameters["triton_final_response"].bool_param:
                return said

    def leave(self, *, cancel: bool = False) -> None:
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


@dataclass
class TritonServer:
    """A server that runs, or has ended."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics_url: str
    folder: Path

    def ask(self, model: str, text: str | None, *pictures: bytes, **more: Any) -> Said:
        stream = Stream(self)
        try:
            stream.ask(model, text, *pictures, **more)
            return stream.until_the_end()
        finally:
            stream.leave()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"http://{self.http}{path}", trust_env=False, timeout=WAIT_S)

    def post(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        return httpx.post(f"http://{self.http}{path}", json=body, trust_env=False, timeout=WAIT_S)

    def is_ready(self, model: str | None = None) -> bool:
        """By HTTP and by gRPC."""
        over_http = self.get(f"/v2/models/{model}/ready" if model else "/v2/health/ready").status_code == 200
        with grpcclient.InferenceServerClient(self.grpc) as client:
            over_grpc = client.is_model_ready(model) if model else client.is_server_ready()
        return over_http and bool(over_grpc)

    def samples(self) -> dict[tuple[str, ...], float]:
        """Of our families: name and values of the labels → value."""
        page = httpx.get(self.metrics_url, trust_env=False, timeout=WAIT_S).text
        return {
            (one.name.removeprefix("vlm_trt:"), *(one.labels[label] for label in sorted(one.labels))): one.value
            for family in text_string_to_metric_families(page)
            for one in family.samples
            if one.name.startswith("vlm_trt:")
        }

    def idle(self, model: str) -> None:
        until(lambda: self.samples()["num_requests_running", model] == 0)

    def log(self) -> str:
        return (self.folder / "log").read_bytes().decode(errors="replace")

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """Steps take so long that an answer is surely under way when something else happens."""
        (self.folder / "slow").touch()
        try:
            yield
        finally:
            (self.folder / "slow").unlink()

    def break_engines(self) -> None:
        (self.folder / "broken").touch()

    def mend_engines(self) -> None:
        (self.folder / "broken").unlink()


def inputs_of(text: str | None, pictures: Sequence[bytes] = (), **more: Any) -> list[Any]:
    """The tensors of a request; `sampling` is the JSON of sampling_parameters."""
    given: dict[str, Any] = {} if text is None else {"text_input": [text]}
    given |= {"image": list(pictures)} if pictures else {}
    given |= {"sampling_parameters" if name == "sampling" else name: [value] for name, value in more.items()}
    found = []
    for name, values in given.items():
        kind, dtype = ("BOOL", np.bool_) if isinstance(values[0], bool) else ("BYTES", np.object_)
        array = np.array([one.encode() if isinstance(one, str) else one for one in values], dtype=dtype)
        found.append(grpcclient.InferInput(name, [len(values)], kind))
        found[-1].set_data_from_numpy(array)
    return found


@contextlib.contextmanager
def triton(repository: Path, *models: str, folder: Path, options: Sequence[str] = ()) -> Iterator[TritonServer]:
    """The server, once it is ready.

    Args:
        repository: of models.
        models: to load.
        folder: for its log and for faults.
        options: of the server, more of them.
    """
    ports = free_ports(3)
    server = PACKAGES / "pytriton" / "tritonserver"
    shared_memory = f"vlm-trt-test-{os.getpid()}-{ports[0]}"
    command = [
        server / "bin" / "tritonserver", "--model-repository", repository, "--model-control-mode", "explicit",
        *(f"--load-model={name}" for name in models), "--backend-directory", server / "backends",
        "--http-address=127.0.0.1", "--grpc-address=127.0.0.1", "--metrics-address=127.0.0.1",
        f"--http-port={ports[0]}", f"--grpc-port={ports[1]}", f"--metrics-port={ports[2]}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory}", *options,
    ]  # fmt: skip
    libraries = (sysconfig.get_config_var("LIBDIR"), PACKAGES / "nvidia_pytriton.libs")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    environment |= {
        "PATH": f"{_made_environment(folder)}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            list(map(str, command)), env=environment, stdout=log, stderr=log, start_new_session=True
        )
    http, grpc, metrics = (f"127.0.0.1:{port}" for port in ports)
    found = TritonServer(process, http, grpc, f"http://{metrics}/metrics", folder)
    try:
        until(lambda: process.poll() is not None or _answers(found))
        assert process.poll() is None, found.log()
        yield found
    finally:
        _end(process, shared_memory)


def _made_environment(folder: Path) -> Path:
    """The programs of an environment that has this tree, what the server's has, and our faults. The process of a model
    starts in the environment of the first python on the path, and does not read PYTHONPATH."""
    made = folder / "environment"
    venv.create(made)
    (site,) = made.glob("lib/python3.*/site-packages")
    (site / "vlm_trt").symlink_to(ROOT)
    (site / "server.pth").write_text(f"{PACKAGES}\n")
    (site / "sitecustomize.py").write_text(_FAULTS.format(folder=str(folder)))
    return made / "bin"


def _answers(server: TritonServer) -> bool:
    try:
        return server.is_ready()
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes], shared_memory: str) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own: the processes of its models
        process.wait()
    for left in Path("/dev/shm").glob(f"{shared_memory}*"):
        left.unlink()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]
