"""Outside families/, nothing depends on which family a model is of: no import of one, no name of one in a string."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

_NAMED = re.compile("qwen|llava|paligemma|smolvlm", re.IGNORECASE)
# A chat format's word in manifests, which more than one family may have.
_WORDS = {"bundle/config.py": ["llava"]}
ROOMS = (
    "bundle", "calibration", "commands", "diagnosis", "engines", "evaluation", "exporter", "probing", "profiling",
    "runtime", "serving", "verification",
)  # fmt: skip
SOURCES = [
    path
    for path in (*(path for room in ROOMS for path in (ROOT / room).rglob("*.py")), *ROOT.glob("*.py"))
    if ROOT / "evaluation" / "scenes" not in path.parents  # the demo model's own questions
]


def names_of(path: Path) -> list[str]:
    """Imports and strings with a family's name; docstrings and comments may have one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    bodies = [
        node.body[0] for node in ast.walk(tree) if hasattr(node, "body") and isinstance(node.body, list) and node.body
    ]
    documented = {id(node.value) for node in bodies if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            found.append(node.value)
    return [name for name in found if _NAMED.search(name)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_names_a_family(path: Path) -> None:
    assert names_of(path) == _WORDS.get(str(path.relative_to(ROOT)), [])


def test_a_name_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text('"""About Qwen."""\nfrom vlm_trt.families.qwen_vl.prompt import x\nkind = f"is {x} of llava15"\n')
    assert names_of(path) == ["vlm_trt.families.qwen_vl.prompt", " of llava15"]
