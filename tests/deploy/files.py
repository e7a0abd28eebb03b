"""What lies in deploy/, read: images as instructions, manifests as documents, arguments as the command reads them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT
from vlm_trt import cli
from vlm_trt.serving.server import _CLOSE_S

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
DEPLOYMENTS = sorted(KUBERNETES.glob("deployment-*.yaml"))
UID = 10001


def instructions(path: Path) -> list[tuple[str, str]]:
    """Word and rest of every instruction, comments left out and lines joined."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def last(path: Path, word: str) -> str:
    """The rest of the last instruction of that word, which is the one that counts."""
    return [rest for found, rest in instructions(path) if found == word][-1]


def entry(path: Path) -> list[str]:
    """What an image runs, without what it gives by default."""
    return list(json.loads(last(path, "ENTRYPOINT")))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def of_kind(kind: str) -> list[dict[str, Any]]:
    """Every document of that kind among the manifests."""
    return [one for path in sorted(KUBERNETES.glob("*.yaml")) for one in documents(path) if one.get("kind") == kind]


def served(words: list[str]) -> dict[str, Any]:
    """The options of `vlm-trt serve` as it reads those words.

    Raises:
        click.UsageError: it has no such option, or the option no such value.
    """
    return cli.main.commands["serve"].make_context("serve", list(words)).params


def seconds_to_end(options: dict[str, Any]) -> float:
    """From a signal to the end, at most: the delay, answers on their way, connections, engines."""
    return float(options["drain_delay"] + options["drain_timeout"] + 2 * _CLOSE_S)


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document, wherever in it."""
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(one)
