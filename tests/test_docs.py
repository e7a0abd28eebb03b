"""What the documents say is so: links, commands, options, dependencies, the example."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from tests.conftest import GOLDEN, ROOT
from vlm_trt import cli

FOLDERS = (ROOT / "docs", ROOT / "benchmarks", ROOT / "examples", ROOT / "deploy")
DOCUMENTS = [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in folder.rglob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    """To a file, and to a section that it has."""
    for target, section in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(path)):
        if "://" not in target:
            file = path.parent / target if target else path
            assert file.exists(), target
            assert not section or file.suffix != ".md" or section in sections(file), f"{target}#{section}"


def prose(path: Path) -> str:
    """The document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def sections(path: Path) -> set[str]:
    """What its headings are called in links, as GitHub has it."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_documents_exist(path: Path) -> None:
    """Every `vlm-trt NAME --option` written anywhere is a command and an option of it."""
    for line in re.findall(r"^vlm-trt .*$", path.read_text(encoding="utf-8"), re.MULTILINE):
        command: click.Command = cli.main
        for name in line.split()[1:]:
            if not isinstance(command, click.Group):
                break
            assert name in command.commands, line
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z0-9-]+", line)) <= known, line


def test_the_cli_reference_is_fresh() -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import make_cli_reference as made; "
        "print(made.reference() == made.TARGET.read_text())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True", "docs/cli.md is stale: run scripts/make_cli_reference.py"


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in wanted:
        name = re.split(r"[\[<>=!~ ]", requirement)[0]
        assert name == "vlm-trt" or re.search(rf"\b{re.escape(name)}\b", reasons), name


def test_both_readme_commands_are_scripts_that_install_what_they_need() -> None:
    text = (ROOT / "README.md").read_text()
    for name in ("scripts/quickstart", "scripts/test"):
        assert f"```bash\n{name}\n```" in text
        script = ROOT / name
        assert script.stat().st_mode & 0o111 and "environment" in script.read_text()
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text()


def test_the_example_runs(verified: Callable[..., Path]) -> None:
    picture = GOLDEN / "ntk-256" / "one-image" / "a.png"
    done = subprocess.run(
        [sys.executable, "examples/answer.py", str(verified("ntk-256")), str(picture)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ tokens, (2[6-9]\d|[3-9]\d\d) of them from the cache", done.stdout), done.stdout


def test_the_evaluation_examples_run(verified: Callable[..., Path], tmp_path: Path) -> None:
    """The data set, the program and the check of a pipeline, as docs/evaluation.md has them."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    questions = tmp_path / "questions"
    questions.mkdir()
    (questions / "data.jsonl").write_text(block(text, "```jsonl\n(.*?)```"))
    for name in ("scene.png", "sign.png"):
        shutil.copy(GOLDEN / "ntk-256" / "one-image" / "a.png", questions / name)
    (tmp_path / "bundle").symlink_to(verified("ntk-256"))
    program = subprocess.run(
        [sys.executable, "-c", block(text, "```python\n(.*?)```")],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert program.returncode == 0, program.stderr
    assert [line.split()[0] for line in program.stdout.splitlines()] == [
        "colour", "reading", "box_iou", "caption_facts", "contains",
    ]  # fmt: skip
    check = block(text, 'python -c "\n(.*?)"\n')
    for high, sentence in ((0.1, ""), (-0.1, "worse than accepted: ['colour']\n")):
        task = {"task": "colour", "interval": {"low": -0.2, "high": high}}
        (tmp_path / "now.json").write_text(json.dumps({"comparison": {"tasks": [task]}}))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", check], cwd=tmp_path, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (int(bool(sentence)), sentence)


def block(text: str, pattern: str) -> str:
    """The one part of a document that the pattern finds."""
    (found,) = re.findall(pattern, text, re.DOTALL)
    return str(found)


def test_no_trace_of_where_it_was_written() -> None:
    """Code and documents speak of the project alone."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout, so there is no list of files")
    for name in tracked.stdout.split():
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", "") and path.name != Path(__file__).name:
            assert "/work/" not in path.read_text(encoding="utf-8", errors="ignore"), name
