"""The layout shows the architecture: who may import whom, what each room may load, how large files may be."""

import ast
import subprocess
import sys
from pathlib import Path

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
    "serving": {"bundle", "runtime"},
}
# Rooms that a server installs: no torch, no ONNX tooling.
TORCH_FREE = ("bundle", "families", "runtime", "evaluation")
EXPORT_ONLY = {"torch", "onnx", "onnx_ir", "onnxscript", "safetensors"}
MAX_LINES = 320

ROOMS = [room for room in MAY_IMPORT if (ROOT / room).is_dir()]
SOURCES = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")] + [ROOT / "cli.py"]


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


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_its_neighbours(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        alien = (imports_of(path) & set(MAY_IMPORT)) - MAY_IMPORT[room] - {room}
        assert not alien, f"{path.relative_to(ROOT)} imports {alien}"


@pytest.mark.parametrize("room", TORCH_FREE)
def test_server_rooms_need_no_export_packages(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        alien = imports_of(path) & EXPORT_ONLY
        assert not alien, f"{path.relative_to(ROOT)} imports {alien}"


def test_quantizing_needs_no_torch() -> None:
    """Its extra brings onnx-ir alone."""
    for path in (path for room in ("calibration", "probing") for path in (ROOT / room).rglob("*.py")):
        alien = imports_of(path) & (EXPORT_ONLY - {"onnx_ir"})
        assert not alien, f"{path.relative_to(ROOT)} imports {alien}"


def test_the_cli_imports_stages_inside_its_commands() -> None:
    rooms = {name.removeprefix("vlm_trt.").split(".")[0] for name in modules_of(ROOT / "cli.py", everywhere=False)}
    assert rooms & set(MAY_IMPORT) == set() and "commands" in rooms, rooms


@pytest.mark.parametrize(
    "command",
    [[], ["export"], ["generate"], ["chat"], ["evaluate"], ["quantize"], ["diagnose"], ["profile"], ["build"]],
)
def test_help_loads_no_heavy_package(command: list[str]) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom vlm_trt import cli\n"
        f"result = CliRunner().invoke(cli.main, {[*command, '--help']!r})\n"
        "assert result.exit_code == 0, result.output\n"
        "print(sorted({'torch', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_runtime_loads_no_torch() -> None:
    code = "import sys, vlm_trt.runtime.model; print('torch' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
