"""Advice to install something: one function gives it, it names packages that registries have, and its extras exist."""

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vlm_trt.bundle.installation import how_to_install, package_of, requirements
from vlm_trt.commands.group import _EXTRAS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
FOLDERS = [ROOT.joinpath(*name.split(".")[1:]) for name in PROJECT["tool"]["setuptools"]["packages"]]
PACKAGE = [path for folder in FOLDERS for path in folder.glob("*.py")]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


def asked(path: Path) -> Iterator[str]:
    """The extras that a file gives to the functions of `bundle/installation.py` by name."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id in ("how_to_install", "requirements"):
            yield from (one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str))


def test_every_extra_that_is_named_exists() -> None:
    code = {extra for path in PACKAGE for extra in asked(path)}
    commands = {extra for extras in _EXTRAS.values() for extra in extras}
    written = {
        extra
        for path in DOCUMENTS
        for found in re.findall(r"'\.\[([a-z,-]+)\]'", path.read_text(encoding="utf-8"))
        for extra in found.split(",")
    }
    assert code | commands | written <= set(EXTRAS)
    assert {"cpu", "cuda"} <= code and {"verify", "export"} <= commands and "quantize" in written


@pytest.mark.parametrize("extra", [extra for extra in EXTRAS if extra != "dev"])
def test_the_advice_names_what_the_extra_brings(extra: str) -> None:
    assert set(map(package_of, requirements(extra))) == set(map(package_of, EXTRAS[extra]))
    assert all(f"'{one}'" in how_to_install(extra) for one in requirements(extra))


def test_torch_comes_without_cuda() -> None:
    advice = how_to_install("verify")
    assert advice.startswith(
        "pip install torch --index-url https://download.pytorch.org/whl/cpu && pip install 'torch>="
    )
    assert "download.pytorch.org" not in how_to_install("quantize", "cpu")


def test_a_copy_that_was_never_installed_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: None)
    assert how_to_install("quantize", "cpu") == "pip install '.[quantize,cpu]' in the folder of vlm-trt"


def test_no_advice_names_a_package_that_no_registry_has() -> None:
    for path in (*PACKAGE, *DOCUMENTS):
        assert not re.search(r"vlm-trt\[|pip install '?vlm-trt", path.read_text(encoding="utf-8")), path


def test_what_every_installation_has_and_the_name_alone() -> None:
    assert set(map(package_of, requirements())) == {"click", "numpy", "pillow", "tiktoken", "tokenizers"}
    assert [package_of(one) for one in ("a", "a>=1", "a[b,c]>=1", "a==1; x")] == ["a"] * 4
