"""What deploy/README.md says to type: files that are there, options that the server has, every image and profile."""

import re
import shlex

import pytest

from tests.conftest import ROOT
from tests.deploy.files import DEPLOY, DOCKERFILES, entry, served

TEXT = (DEPLOY / "README.md").read_text(encoding="utf-8")
BLOCKS = "".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", "")
COMMANDS = [shlex.split(line) for line in BLOCKS.splitlines()]
NAMES = {path.suffix[1:] for path in DOCKERFILES}
RUNS = [words for words in COMMANDS if words[:2] == ["docker", "run"] and "--entrypoint" not in words]


def test_it_builds_every_image() -> None:
    builds = [words for words in COMMANDS if words[:2] == ["docker", "build"]]
    assert builds == [
        ["docker", "build", "-f", f"deploy/Dockerfile.{name}", "-t", f"vlm-trt:{name}", "."] for name in sorted(NAMES)
    ]


@pytest.mark.parametrize("words", RUNS, ids=" ".join)
def test_what_it_runs_is_an_image_with_arguments_that_the_server_takes(words: list[str]) -> None:
    (image,) = [word for word in words if word.startswith("vlm-trt:")]
    path = DEPLOY / f"Dockerfile.{image.removeprefix('vlm-trt:')}"
    given = words[words.index(image) + 1 :] or ["/bundle"]
    options = served([*entry(path)[2:], *given])
    assert "/bundle" in {str(options["bundle"]), *(str(bundle) for _, bundle in options["models"])}
    assert any(word.endswith(":/bundle:ro") for word in words)
    published = [words[index + 1] for index, word in enumerate(words) if word == "-p"]
    assert all(port == f"127.0.0.1:{options['port']}:{options['port']}" for port in published)


def test_there_are_commands_of_every_kind() -> None:
    assert len(RUNS) == 3 and {words[0] for words in COMMANDS} >= {"docker", "kubectl", "helm"}
    assert set(re.findall(r"--profile (\w+)", TEXT)) == NAMES


def test_every_file_that_it_names_is_there_and_every_file_is_named() -> None:
    for name in re.findall(r"deploy/[\w./-]+\.yaml", BLOCKS):
        assert (ROOT / name).is_file(), name
    for path in sorted(DEPLOY.rglob("*.*")):
        assert path.name == "README.md" or path.name in TEXT, path.name
