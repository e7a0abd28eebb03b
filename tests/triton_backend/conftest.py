"""A Triton server that many tests share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.commands.runs import vlm_trt

if TYPE_CHECKING:  # it skips where there is no server, and a fixture may do so
    from tests.triton_backend.live import TritonServer

Start = Callable[..., "TritonServer"]
Parse = Callable[[str], Any]


def written(repository: Path, bundle: Path, *options: object) -> None:
    """Adds a bundle that nobody verified, as the command does."""
    chosen = ("--unverified", "--backend", "cpu", "--threads", 1)
    done = vlm_trt("export-serving", "triton", bundle, repository, *chosen, *options)
    assert done.exit_code == 0, done.stderr


@pytest.fixture(scope="session")
def repository(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models over one bundle of three slots: `tiny`, and `narrow`, of which no request may wait."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    written(folder, exported("ntk-256"), "--name", "tiny")
    written(folder, exported("ntk-256"), "--name", "narrow", "--max-waiting", 0)
    return folder


@pytest.fixture(scope="session")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[TritonServer]":
    from tests.triton_backend.live import triton

    with triton(repository, "tiny", "narrow", folder=tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def start(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """A function: models, options of the server → a server of the test's own."""
    from tests.triton_backend.live import triton

    with ExitStack() as stack:

        def begin(*models: str, **more: object) -> "TritonServer":
            folder = tmp_path_factory.mktemp("server")
            return stack.enter_context(triton(repository, *models, folder=folder, **more))  # type: ignore[arg-type]

        yield begin


@pytest.fixture(scope="session")
def parse() -> Parse:
    """A function: text of a config → Triton's ModelConfig."""
    from tests.triton_backend.client import model_config_pb2, text_format

    return lambda text: text_format.Parse(text, model_config_pb2.ModelConfig())
