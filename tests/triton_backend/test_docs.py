"""What docs/triton.md says is so: its program and its requests run as they stand, its numbers are those of the code."""

import inspect
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving.live import WAIT_S
from tests.triton_backend import live, test_server
from tests.triton_backend.client import MADE
from tests.triton_backend.conftest import written
from tests.triton_backend.live import TritonServer, triton
from vlm_trt.triton_backend.settings import LIMITS
from vlm_trt.triton_backend.tensors import INPUTS, OUTPUTS

TEXT = (ROOT / "docs" / "triton.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def documented(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A model by the name that the document calls it, its bundle by a path that begins in the model's folder."""
    folder = tmp_path_factory.mktemp("documented")
    bundle = os.path.relpath(exported("ntk-256"), folder / "models" / "bundle")
    written(folder / "models", exported("ntk-256"), "--name", "bundle", "--bundle-path", bundle)
    with triton(folder / "models", "bundle", folder=folder) as found:
        yield found


def at(server: TritonServer, text: str) -> str:
    return text.replace("127.0.0.1:8001", server.grpc).replace("127.0.0.1:8000", server.http)


def test_the_program_runs(documented: TritonServer, tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    shutil.copy(ROOT / "examples" / "demo_model" / "scene.png", tmp_path)
    done = subprocess.run(
        [MADE / "bin" / "python", "-c", at(documented, program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_the_request_over_http_runs(documented: TritonServer) -> None:
    (command,) = re.findall(r"^curl (?:.*\\\n)*.*$", TEXT, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-c", f"{at(documented, command)} --fail --silent --show-error"],
        capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("data: {"), done.stderr


def test_its_other_calls_are_those_of_the_tests() -> None:
    tested = inspect.getsource(live) + inspect.getsource(test_server)
    for call in (
        "stop_stream(cancel_requests=",
        "error.status()",
        "client.is_model_ready(",
        "client.is_server_ready()",
    ):
        assert call in TEXT and call in tested, call


def test_every_tensor_and_limit_is_named() -> None:
    for tensor in (*INPUTS, *OUTPUTS):
        assert f"`{tensor.name}`" in TEXT, tensor
    for said in (
        f"up to {LIMITS.max_pictures} pictures",
        f"`--max-waiting` ({LIMITS.max_waiting})",
        f"{LIMITS.held_bytes >> 20} MiB of pictures",
        f"`--request-timeout` ({LIMITS.request_timeout_s:.0f} s)",
        f"more than {LIMITS.stuck_after_s:.0f} s",
    ):
        assert said in TEXT, said
