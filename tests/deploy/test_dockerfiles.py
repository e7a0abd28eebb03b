"""The images: linted, alike but for their backend, and in step with the command that they run."""

import json
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.deploy.files import DOCKERFILES, UID, entry, instructions, last, served
from tests.serving.live import Live

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
BACKENDS = {"cpu": {"cpu"}, "cuda": {"cuda"}, "tensorrt": {"tensorrt", "tensorrt-rtx"}}
each = pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("hadolint")
    return subprocess.run([program, "--no-color", path], capture_output=True, text=True)


def arguments(path: Path) -> dict[str, str]:
    """Name and default of every ARG."""
    return dict(rest.split("=", 1) for word, rest in instructions(path) if word == "ARG")


def test_there_is_one_for_every_backend() -> None:
    assert [path.suffix[1:] for path in DOCKERFILES] == list(BACKENDS)


@each
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    done = lint(path)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


def test_hadolint_would_say_it(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM python:latest\nRUN cd /tmp && pip install requests\nCMD python\n")
    assert {"DL3007", "DL3013", "DL3003", "DL3025"} <= set(re.findall(r"DL\d+", lint(careless).stdout))


def test_they_differ_by_their_backend_alone() -> None:
    def shared(path: Path) -> list[tuple[str, str]]:
        own = ("ENTRYPOINT", "ENV NVIDIA", "ARG BACKEND")
        return [one for one in instructions(path) if not " ".join(one).startswith(own)]

    first, *others = DOCKERFILES
    assert len(shared(first)) > 12
    for other in others:
        assert shared(other) == shared(first), other


@each
def test_what_it_installs_are_extras(path: Path) -> None:
    given = arguments(path)
    assert given["BACKEND"] in BACKENDS[path.suffix[1:]]
    extras = {given["BACKEND"], *given["EXTRAS"].split(",")}
    assert "serve" in extras and extras <= set(EXTRAS)
    assert not set(given["EXTRAS"].split(",")) & set().union(*BACKENDS.values()), "two backends hide each other"


@each
def test_its_python_is_one_that_the_project_takes(path: Path) -> None:
    """By a tag that names it; what is built with it is what runs with it."""
    base = re.fullmatch(r"docker\.io/library/python:(\d+)\.(\d+)-slim-\w+", arguments(path)["PYTHON"])
    least = re.fullmatch(r">=(\d+)\.(\d+)", PROJECT["project"]["requires-python"])
    assert base and least and tuple(map(int, base.groups())) >= tuple(map(int, least.groups()))
    assert [rest for word, rest in instructions(path) if word == "FROM"] == ["${PYTHON} AS builder", "${PYTHON}"]


@each
def test_it_runs_as_nobody_in_particular(path: Path) -> None:
    assert last(path, "USER") == f"{UID}:{UID}"
    assert f"--uid {UID} " in last(path, "RUN") and last(path, "STOPSIGNAL") == "SIGTERM"


@each
def test_it_serves_as_the_command_would(path: Path) -> None:
    assert entry(path)[:2] == ["vlm-trt", "serve"]
    options = served([*entry(path)[2:], *json.loads(last(path, "CMD"))])
    assert str(options["bundle"]) == "/bundle" and options["host"] == "0.0.0.0"
    assert last(path, "EXPOSE") == str(options["port"])
    # On a CPU in silence is worse than not at all, and ONNX Runtime could.
    assert options["backend"] == ("cuda" if path.suffix == ".cuda" else "auto")


@each
def test_its_health_is_what_the_server_says(path: Path, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very command, on a server that takes requests, on one that drains, and where none listens."""
    options, command = last(path, "HEALTHCHECK").split("CMD ")
    words = json.loads(command)
    assert words[:2] == ["python", "-c"] and f", {last(path, 'EXPOSE')}," in words[2]
    assert float(*re.findall(r"timeout=(\d+)", words[2])) < float(*re.findall(r"--timeout=(\d+)s", options))

    def healthy(port: int) -> int:
        code = words[2].replace(f", {last(path, 'EXPOSE')},", f", {port},")
        # A proxy of the container's is none for the container itself.
        environment = {"http_proxy": "http://127.0.0.1:9", "PATH": ""}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment).returncode

    assert healthy(live.port) == 0
    monkeypatch.setattr(live.services.lifecycle, "draining", True)
    assert healthy(live.port) == 1
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert healthy(silent.getsockname()[1]) == 1


def test_a_build_is_given_what_the_wheel_is_made_of() -> None:
    """Every folder of the package, and what its metadata names; nothing else that lies in the tree."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    let_in = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert rules[0] == "*" and [rule for rule in rules[1:] if not rule.startswith("!")] == ["**/__pycache__"]
    packages = {name.split(".")[1] for name in PROJECT["tool"]["setuptools"]["packages"] if name.startswith("vlm_trt.")}
    files = {"LICENSE", PROJECT["project"]["readme"], "pyproject.toml", "py.typed", "*.py"}
    assert let_in == packages | files, f"name in .dockerignore: {packages ^ (let_in - files)}"
    named = [*PROJECT["project"]["license-files"], *PROJECT["tool"]["setuptools"]["package-dir"].values()]
    assert all(Path(name).parts[:1] in [(), ("LICENSE",), *((one,) for one in packages)] for name in named)
