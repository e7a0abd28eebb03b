"""The Compose file: of the specification, and one service for every image, with nothing that it does not need."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.deploy.files import DEPLOY, DOCKERFILES, documents, entry, seconds_to_end, served

COMPOSE = DEPLOY / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = documents(COMPOSE)[0]["services"]
each = pytest.mark.parametrize("name", SERVICES)


def check(path: Path) -> subprocess.CompletedProcess[str]:
    """Compose's own schema, which the checker brings along."""
    command = ["-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True)


def test_it_is_of_the_specification() -> None:
    done = check(COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_not_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("read_only: true\n  tmpfs", "readonly: true\n  tmpfs"))
    done = check(wrong)
    assert done.returncode == 1 and "readonly" in done.stdout, done.stdout + done.stderr


def test_every_image_has_its_service() -> None:
    """Under a profile of its name: they take the same port, so none starts unless it is asked for."""
    assert set(SERVICES) == {path.suffix[1:] for path in DOCKERFILES}
    for name, service in SERVICES.items():
        assert service["profiles"] == [name] and service["image"] == f"vlm-trt:{name}"
        assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
        assert ROOT / service["build"]["dockerfile"] == DEPLOY / f"Dockerfile.{name}"


@each
def test_it_writes_nothing_and_may_nothing(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    (bundle,) = service["volumes"]
    assert bundle["target"] == "/bundle" and bundle["read_only"] and not bundle["bind"]["create_host_path"]
    assert [one.partition(":")[0] for one in service["tmpfs"]] == ["/tmp"]


@each
def test_only_this_machine_reaches_the_port_by_default(name: str) -> None:
    options = served([*entry(DEPLOY / f"Dockerfile.{name}")[2:], "/bundle"])
    assert SERVICES[name]["ports"] == [f"${{LISTEN:-127.0.0.1:8000}}:{options['port']}"]


@each
def test_it_is_given_the_time_that_it_takes_to_end(name: str) -> None:
    options = served([*entry(DEPLOY / f"Dockerfile.{name}")[2:], "/bundle"])
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > seconds_to_end(options)


@each
def test_a_gpu_is_reserved_where_one_is_needed(name: str) -> None:
    resources = SERVICES[name].get("deploy", {}).get("resources", {})
    devices = resources.get("reservations", {}).get("devices", [])
    assert [one["driver"] for one in devices] == ([] if name == "cpu" else ["nvidia"])
