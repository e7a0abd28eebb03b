"""What docs/serving.md says is so: its commands and its program run as they stand, its tables name what there is."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.serving.live import WAIT_S, Live, serving
from vlm_trt.serving.settings import Settings

TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
WRITTEN = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def bundle(exported: Callable[..., Path]) -> Iterator[Live]:
    with serving({"bundle": exported("ntk-256")}, Settings()) as live:
        yield live


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "examples" / "demo_model" / "scene.png", tmp_path / "scene.png")
    return tmp_path


def commands() -> list[str]:
    """Every command of the document that asks the server, with the lines it goes on in."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    found: list[str] = []
    for block in (block for block in blocks if "curl" in block):
        if block.startswith("printf"):
            found.append(block)
        else:
            found += re.findall(r"^curl (?:.*\\\n)*.*$", block, re.MULTILINE)
    return found


@pytest.mark.parametrize("command", commands())
def test_the_commands_run(bundle: Live, folder: Path, command: str) -> None:
    done = subprocess.run(
        ["bash", "-c", command.replace(WRITTEN, bundle.url).replace("curl ", "curl --fail --silent --show-error ")],
        cwd=folder, capture_output=True, text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout, done.stderr


def test_there_are_commands_of_every_kind() -> None:
    assert len(commands()) == 8
    for path in ("chat/completions", "v1/detect", "v1/completions", "v1/models", "health/ready", "metrics", "version"):
        assert any(path in command for command in commands())


def test_the_program_runs(bundle: Live, folder: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", program.replace(WRITTEN, bundle.url)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_every_route_and_metric_is_named(bundle: Live) -> None:
    app = bundle.server._uvicorn.config.loaded_app
    for route in app.routes:  # type: ignore[union-attr]
        assert route.path.replace("{name:path}", "NAME") in TEXT, route.path
    for line in bundle.client.get("/metrics").text.splitlines():
        if line.startswith("# TYPE vlm_trt:") and not line.split()[2].endswith("_created"):
            assert line.split()[2].removeprefix("vlm_trt:").removesuffix("_total") in TEXT, line


def test_the_limits_are_those_of_the_settings() -> None:
    settings = Settings()
    picture = settings.picture
    for said in (
        f"| {settings.max_body_bytes >> 20} MiB, counted", f"{settings.held_bytes >> 20} MiB of all together",
        f"| {settings.header_timeout_s:.0f} s and 64 KiB; its body {settings.body_timeout_s:.0f} s |",
        f"| {settings.max_pictures} a request",
        f"| {picture.bytes >> 20} MiB, {picture.pixels // 10**6} megapixels, {picture.side:,} pixels a side, "
        f"{picture.aspect}:1",
        f"| {settings.max_waiting} | `--max-waiting` |",
        f"| {settings.request_timeout_s:.0f} s | `--request-timeout` |",
        f"the first of them for {settings.reader_patience_s:.0f} s",
    ):  # fmt: skip
        assert said in TEXT, said
