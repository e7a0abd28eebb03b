"""The project as a user installs it: the wheel, what lies in it, and every row of README's table."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GOLDEN, ROOT
from tests.installed import (
    STEPS,
    add_with_pip,
    build_wheel,
    install,
    install_rows,
    install_with_pip,
    outside,
    require,
    run,
    run_others,
)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Folders of the tree that are no part of the package.
OUTSIDE = {"benchmarks", "build", "deploy", "dist", "docs", "examples", "quickstart", "scripts", "tests"}
DATA = {".css", ".html", ".otf", ".toml", ".ttf", ".txt", ".typed"}
PICTURE = GOLDEN / "ntk-256" / "one-image" / "a.png"
ABSENT = {
    "cuda",
    "optimum",
    "tensorrt",
}  # extras whose packages the tests' environment lacks: scripts/check_installs.py has them


# Folders whose files the wheel puts elsewhere than under our name.
ELSEWHERE = {folder: name for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items() if folder != "."}


def package_of(folder: Path) -> str:
    """What a folder of the tree is called where it is installed."""
    inside = folder.relative_to(ROOT)
    return ELSEWHERE.get(inside.as_posix(), ".".join(("vlm_trt", *inside.parts)))


def package_folders() -> list[Path]:
    """Every folder of the tree that the package has to have, with Python files or below one that has."""
    rooms = (one for one in sorted(ROOT.iterdir()) if one.is_dir() and not one.name.startswith("."))
    return [
        folder
        for room in rooms
        if room.name not in OUTSIDE
        for folder in [room, *sorted(one for one in room.rglob("*") if one.is_dir())]
        if any(folder.glob("*.py"))
    ]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built once per run."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if base.name.startswith("popen-") else base) / "wheel"
    root.mkdir(exist_ok=True)
    with (root / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return next(root.glob("*.whl"), None) or build_wheel(root)


def test_every_folder_of_the_package_is_listed() -> None:
    expected = {"vlm_trt", *map(package_of, package_folders())}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == expected


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module and every data file, under one name but for what optimum reads; no tests, no environment."""
    folders = package_folders()
    ours = [path for folder in (ROOT, *folders) for path in folder.glob("*.py")]
    data = [path for folder in folders for path in folder.rglob("*") if path.suffix in DATA]
    expected = {
        f"{package_of(path.parent).replace('.', '/')}/{path.name}" for path in (*ours, *data, ROOT / "py.typed")
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {name for name in names if re.match(r"vlm_trt-[^/]+\.dist-info/", name)}
    assert names - info == expected
    assert {"vlm_trt/calibration/recipes/int8.toml", "vlm_trt/profiling/report.css"} <= names


def test_the_version_is_one_number_in_one_place(wheel: Path, tmp_path: Path) -> None:
    number = PROJECT["project"]["version"]
    files = [
        *ROOT.glob("*.*"),
        *(path for room in package_folders() for path in room.glob("*.py")),
        *ROOT.glob("docs/*"),
    ]
    texts = {path.name: path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md", ".toml")}
    said = {name for name, text in texts.items() if re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", text)}
    assert said - {"CHANGELOG.md"} == {"pyproject.toml"}, said
    python = install(wheel, (), tmp_path / "environment")
    (shown,) = run(python, [["--version"]], tmp_path)
    assert shown.stdout == f"vlm-trt, version {number}\n"
    assert outside(python, ["-c", "import vlm_trt; print(vlm_trt.__version__)"], tmp_path).stdout == f"{number}\n"


def test_an_application_keeps_its_own_names(wheel: Path, tmp_path: Path, verified: Callable[..., Path]) -> None:
    """As pip installs it, beside files called as our folders are, the package answers, and the others are found."""
    python, application = install_with_pip(wheel, ("cpu",), tmp_path / "environment"), tmp_path / "application"
    if isinstance(python, str):
        pytest.skip(f"pip could not install the packages of [cpu], perhaps without a network: {python[-200:]}")
    (application / "bundle").mkdir(parents=True)
    for name in ("models.py", "runtime.py", "cli.py", "families.py", "bundle/__init__.py"):
        (application / name).write_text(f"WHOSE = {name!r}\n")
    (application / "main.py").write_text(
        "import models, runtime, cli, families, bundle\n"
        "from vlm_trt import Chat, Image, Message, Options, Text, load\n"
        f"model = load({str(verified('ntk-256'))!r}, backend='cpu')\n"
        f"picture = open({str(PICTURE)!r}, 'rb').read()\n"
        "said = Message('user', (Image(picture), Text('What?')))\n"
        "answer = model.generate('What?', images=[picture], options=Options(max_new_tokens=2))\n"
        "print([one.WHOSE for one in (models, runtime, cli, families, bundle)], len(answer.ids), Chat, said.role)\n"
    )
    done = outside(python, ["main.py"], application)
    assert done.returncode == 0, done.stderr
    whose = "['models.py', 'runtime.py', 'cli.py', 'families.py', 'bundle/__init__.py'] 2 <class 'vlm_trt.runtime."
    assert done.stdout.startswith(whose), done.stdout
    shown = subprocess.run([python.parent / "vlm-trt", "--version"], cwd=application, capture_output=True, text=True)
    assert shown.stdout == f"vlm-trt, version {PROJECT['project']['version']}\n", shown.stderr


def test_its_types_are_seen_by_a_user(wheel: Path, tmp_path: Path) -> None:
    python = install(wheel, ("cpu",), tmp_path / "environment")
    (tmp_path / "user.py").write_text("import vlm_trt\n\nreveal_type(vlm_trt.load)\nvlm_trt.load(3)\n")
    checking = ["-m", "mypy", "--python-executable", str(python), "--follow-imports=silent", "--cache-dir=cache"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *checking, "user.py"], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert re.search(r'Revealed type is "def \(.*-> vlm_trt\.runtime\.model\.VisionLanguageModel"', done.stdout)
    assert 'Argument 1 to "load" has incompatible type "int"' in done.stdout


def test_without_a_backend_the_choices_are_named(wheel: Path, tmp_path: Path, exported: Callable[..., Path]) -> None:
    """One sentence, with a command that can be typed, for what was asked for."""
    python, bundle = install(wheel, (), tmp_path / "environment"), str(exported("ntk-256"))
    cpu, cuda, rtx = "'onnxruntime>=", "'onnxruntime-gpu[cuda,cudnn]>=", "'tensorrt-rtx>="
    wanted = {"auto": (cpu, cuda, rtx), "cpu": (cpu,), "cuda": (cuda,), "cuda-graph": (cuda,), "tensorrt-rtx": (rtx,)}
    commands = [["generate", bundle, "Hi", "--unverified", "--backend", backend] for backend in wanted]
    for done, packages in zip(run(python, commands, tmp_path), wanted.values(), strict=True):
        assert done.exit_code == 6 and len(done.stderr.splitlines()) == 1, done.stderr
        assert all(f"pip install {package}" in done.stderr for package in packages), done.stderr


def test_every_row_of_the_table_has_its_commands() -> None:
    assert set(STEPS) == set(install_rows())
    assert {extra for row in STEPS for extra in row} | {"dev"} == set(EXTRAS)
    assert set(EXTRAS["verify"]) <= set(EXTRAS["export"])  # so what is verified with the one is with the other


@pytest.mark.parametrize("row", [row for row in STEPS if not ABSENT & set(row)], ids=",".join)
def test_a_row_does_what_it_is_for(
    row: tuple[str, ...],
    wheel: Path,
    verified: Callable[..., Path],
    demo_bundle: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle("fp32") if "quantize" in row else verified("ntk-256"), bundle)
    require(install(wheel, row, tmp_path / "environment"), STEPS[row], tmp_path, bundle)


def test_optimum_exports(wheel: Path, tmp_path: Path, verified: Callable[..., Path]) -> None:
    """The row of the real optimum; and its help, its errors and its exit codes are those of `vlm-trt export`."""
    python = install(wheel, ("export", "cpu"), tmp_path / "environment")
    if missing := add_with_pip(python, EXTRAS["optimum"]):
        pytest.skip(f"pip could not install optimum, perhaps without a network: {missing[-300:]}")
    require(python, STEPS["optimum", "export", "cpu"], tmp_path, verified("ntk-256"))
    refused = [["nothing", "out2"], ["--help"], ["a", "b", "--precision", "fp7"], ["--force", "a"], []]
    theirs = run_others(python, "optimum-cli", [["export", "vlm-trt", *words] for words in refused], tmp_path)
    for one, other in zip(theirs, run(python, [["export", *words] for words in refused], tmp_path), strict=True):
        said = [" ".join((ran.stdout + ran.stderr).split()) for ran in (one, other)]  # lines end elsewhere
        assert one.exit_code == other.exit_code, said
        assert said[0] == re.sub(r"\bmain export\b|vlm-trt export", "optimum-cli export vlm-trt", said[1])
    assert theirs[0].exit_code == 3 and theirs[0].stderr.startswith("vlm-trt: nothing/config.json is missing; ")
