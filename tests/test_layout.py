"""The layout shows the architecture: who may import whom, what each room may load, how large files may be."""

import ast
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent

# Room → the rooms it may import. Source: docs/architecture.md.
MAY_IMPORT: dict[str, set[str]] = {
    "bundle": set(),
    "families": {"bundle"},
    "exporter": {"bundle", "families"},
    "probing": {"bundle", "runtime"},
    "calibration": {"bundle", "families", "runtime", "evaluation", "probing"},
    "diagnosis": {"bundle", "families", "runtime", "evaluation", "probing", "verification", "calibration"},
    "engines": {"bundle"},
    "runtime": {"bundle", "families"},
    "evaluation": {"bundle", "families", "runtime"},
    "verification": {"bundle", "families", "exporter", "runtime", "probing"},
    "profiling": {"bundle", "families", "runtime", "exporter", "verification"},
    "serving": {"bundle", "families", "runtime"},
    "fleet": {"bundle", "families", "runtime", "serving"},
}
# Rooms that a server installs: no torch, no ONNX tooling.
TORCH_FREE = ("bundle", "families", "runtime", "evaluation", "serving", "fleet")
EXPORT_ONLY = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"}
# What changes large graphs when they are loaded on a CPU; its editor is in the extra `cpu`, and may be missing.
LOADS_CHANGED = ("runtime/grouped_attention.py", "runtime/ort.py")
HEAVY = {"torch", "onnxruntime", "tensorrt", "tensorrt_rtx", "onnx", "fastapi", "httpx", "uvicorn"}
MAX_LINES = 320

ROOMS = [room for room in MAY_IMPORT if (ROOT / room).is_dir()]
SOURCES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + [ROOT / "cli.py"]
# What is installed: every module by its name.
MODULES = {
    ".".join(("vlm_trt", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in (*SOURCES, *(ROOT / "commands").rglob("*.py"), ROOT / "__init__.py")
}


def modules_of(path: Path, everywhere: bool = True) -> set[str]:
    """Dotted names of what a file imports: wherever in it, or only when it is loaded itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: set[str] = set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path} imports relatively"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_of(path: Path) -> set[str]:
    """Our rooms and others' packages that a file imports, wherever in it."""
    return {name.removeprefix("vlm_trt.").split(".")[0] for name in modules_of(path)}


def needed_by(path: Path, known: Collection[str]) -> set[str]:
    """The modules that a file imports, wherever in it, or names in a string, as `import_module` and `-m` take them."""
    strings = {node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if is_string(node)}
    imported = modules_of(path)
    parents = {name.rpartition(".")[0] for name in imported if name not in known}  # `from module import name`
    return {name for name in (*imported, *parents, *strings) if name in known}


def is_string(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def circle(needs: Mapping[str, Collection[str]]) -> list[str]:
    """Names each of which needs the next, and the last the first; empty where there are none."""
    left = {name: set(needed) for name, needed in needs.items()}
    while free := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in free}
    path: list[str] = []
    at = min(left, default=None)
    while at is not None and at not in path:
        path.append(at)
        at = min(left[at] & left.keys())
    return path[path.index(at) :] if at is not None else []


def test_no_files_import_each_other() -> None:
    needs = {name: needed_by(path, MODULES) - {name} for name, path in MODULES.items()}
    assert "vlm_trt.runtime.model" in needs["vlm_trt.commands.chat"]
    assert "vlm_trt.evaluation.scenes.dataset" in needs["vlm_trt.evaluation.synthetic"]
    assert not circle(needs), " → ".join(circle(needs))


def test_a_circle_of_files_is_found(tmp_path: Path) -> None:
    """Through a function and through a string; a file that only leads to it is no part of it."""
    texts = {
        "a": "from vlm_trt import b",
        "b": "def later():\n    import vlm_trt.c",
        "c": "import_module('vlm_trt.d')",
        "d": "from vlm_trt.b import thing",
        "e": "import os",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    known = {f"vlm_trt.{name}" for name in texts}
    needs = {f"vlm_trt.{name}": needed_by(tmp_path / f"{name}.py", known) for name in texts}
    assert circle(needs) == ["vlm_trt.b", "vlm_trt.c", "vlm_trt.d"]
    assert circle({**needs, "vlm_trt.d": set()}) == []


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_its_neighbours(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        alien = (imports_of(path) & set(MAY_IMPORT)) - MAY_IMPORT[room] - {room}
        assert not alien, f"{path.relative_to(ROOT)} imports {alien}"


@pytest.mark.parametrize("room", TORCH_FREE)
def test_server_rooms_need_no_export_packages(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        alien = imports_of(path) & EXPORT_ONLY
        if path.relative_to(ROOT).as_posix() in LOADS_CHANGED:
            alien -= {"onnx_ir"}
        assert not alien, f"{path.relative_to(ROOT)} imports {alien}"


def test_quantizing_needs_no_torch() -> None:
    """Its extra brings onnx and onnx-ir alone."""
    for path in (path for room in ("calibration", "probing") for path in (ROOT / room).rglob("*.py")):
        alien = imports_of(path) & (EXPORT_ONLY - {"onnx", "onnx_ir"})
        assert not alien, f"{path.relative_to(ROOT)} imports {alien}"


def test_the_cli_imports_stages_inside_its_commands() -> None:
    rooms = {name.removeprefix("vlm_trt.").split(".")[0] for name in modules_of(ROOT / "cli.py", everywhere=False)}
    assert rooms & set(MAY_IMPORT) == set() and "commands" in rooms, rooms


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["export"],
        ["generate"],
        ["chat"],
        ["evaluate"],
        ["quantize"],
        ["diagnose"],
        ["profile"],
        ["build"],
        ["serve"],
    ],
)
def test_help_loads_no_heavy_package(command: list[str]) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom vlm_trt import cli\n"
        f"result = CliRunner().invoke(cli.main, {[*command, '--help']!r})\n"
        "assert result.exit_code == 0, result.output\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["runtime.model", "serving.server"])
def test_importing_what_answers_loads_no_torch(module: str) -> None:
    code = f"import sys, vlm_trt.{module}; print('torch' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
