"""Installations without a network: an environment that has our wheel and what its extras bring, and nothing else.

The packages are links to those of the environment that the tests run in, so it is made in a second, and holds exactly
what pip would install: the closure of the requirements as their metadata has them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from itertools import groupby
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
_ROW = re.compile(r"'\.\[([a-z,-]+)\]'")
# Runs several commands in one process; prints what came of each.
_DRIVER = """
import json, sys
from click.testing import CliRunner
from vlm_trt import cli
found = []
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli.main, words)
    raised = None if isinstance(done.exception, SystemExit | None) else repr(done.exception)
    found.append([done.exit_code, done.stdout, done.stderr, raised])
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Step:
    """A command that a row of README's table is for, or is not for."""

    words: str  # {bundle}, {checkpoint}, {picture}, {clip}, {questions}, {boxes}, {out}: as the run gives them
    says: str = ""  # found in what it prints
    codes: tuple[int, ...] = (0,)
    program: str = "vlm-trt"


def _refused(words: str, package: str) -> Step:
    return Step(
        words, f"^vlm-trt: {package} is not installed, and .* needs it; install what it needs: .*pip inst", (6,)
    )


_NO_GPU = "CUDA does not start here|there is no (NVIDIA )?GPU"
_ANSWERS = Step("generate {bundle} What? --image {picture} --backend cpu --greedy --max-new-tokens 4")
_VERIFIES = Step("verify {bundle} --backend cpu", "verified: fp32 on onnxruntime-cpu")
_EXPORTS = Step("export {checkpoint} {out} --precision fp32 --max-seq-tokens 320 --max-batch 1 --max-images 1")
_BUILDS = "build {bundle} --precision fp32 --component resampler"
_BOXES = "evaluate {bundle} --data {boxes} --images . --max-new-tokens 8 -o {out}.json"
# Where engines run there may be a GPU, or none.
_CUDA = Step("generate {bundle} What? --image {picture} --backend cuda --greedy --max-new-tokens 4", "", (0, 6))
_QUANTIZED = (
    Step("quantize {bundle} --recipe int8-weight --evaluate none", "not judged"),
    Step("verify {bundle} --precision int8-weight --evaluate {questions} --max-drop 1", "its answers held"),
    Step("generate {bundle} What? --precision int8-weight --greedy --max-new-tokens 4"),
    Step("diagnose {bundle} --precision int8-weight --samples {questions}", "half of the error is added by"),
)
# Row of README's table → what it has to do.
STEPS: dict[tuple[str, ...], tuple[Step, ...]] = {
    ("cpu",): (
        Step("--version"),
        Step("doctor", "yes run on the CPU"),
        Step(f"{_ANSWERS.words} --draw {{out}}.png"),
        Step("evaluate {bundle} --data {questions}", "exact"),
        Step("evaluate {bundle} --data synthetic --count 2 --max-new-tokens 2", "all"),
        Step("inspect {bundle} --check", "every file is as the manifest says"),
        Step("plan {bundle}", "", (0, 8)),
        _refused("export {checkpoint} {out}", "torch"),
        _refused("verify {bundle}", "torch"),
        _refused(_BOXES, "pycocotools"),
        Step("generate {bundle} What? --video {clip}", "PyAV is missing; install it with: pip install 'av", (2,)),
    ),
    ("coco", "cpu"): (Step(_BOXES, "^AP50 +0.000"),),
    # The bundle's family takes none, which is said behind what the extra is for.
    ("video", "cpu"): (Step("generate {bundle} What? --video {clip}", "takes no video; send frames", (2,)), _ANSWERS),
    # An address that no machine has: refused when everything is imported and the bundle is found fit.
    ("serve", "guided", "cpu"): (Step("serve {bundle} --host 203.0.113.1", "cannot be used", (9,)),),
    ("serve", "ray", "cpu"): (
        Step("export-serving ray {bundle} -o {out}.yaml --replicas 2", "on the cluster's head: serve deploy"),
        Step("serve {bundle} --ray --host 203.0.113.1", "cannot be used", (9,)),
    ),
    ("cuda",): (Step("doctor", "yes run on the CPU"), _ANSWERS, _CUDA),
    ("tensorrt",): (Step("generate {bundle} What? --backend tensorrt", "", (0, 6)),),
    ("tensorrt-rtx",): (
        Step("generate {bundle} What? --backend tensorrt-rtx", "", (0, 6)),
        Step(
            "generate {bundle} What? --backend cpu",
            "the backend cpu is it; install it: pip install 'onnxruntime>",
            (6,),
        ),
    ),
    ("export", "cpu"): (
        _EXPORTS,
        Step("generate {out} What? --unverified --max-new-tokens 2"),
    ),  # verify: the row below
    # Of a repository that there is not, whether a network is or not.
    ("hub", "export", "cpu"): (Step("export vlm-trt/none {out} --download", "cannot be downloaded", (9,)), _EXPORTS),
    ("optimum", "export", "cpu"): (
        Step("export --help", r"^ +vlm-trt +Export a vision-language model", program="optimum-cli"),
        Step(_EXPORTS.words.replace("export", "export vlm-trt"), "wrote .*out: ", program="optimum-cli"),
        Step("generate {out} What? --unverified --max-new-tokens 2"),
    ),
    ("verify", "cpu"): (_VERIFIES,),
    ("verify", "cuda"): (_VERIFIES, Step("verify {bundle} --backend cuda", f"verified|{_NO_GPU}", (0, 6))),
    ("verify", "cpu", "tensorrt"): (_VERIFIES, Step("verify {bundle} --backend tensorrt", "", (0, 6))),
    ("verify", "cpu", "tensorrt-rtx"): (Step("verify {bundle} --backend tensorrt-rtx", f"engines|{_NO_GPU}", (0, 6)),),
    ("quantize", "cpu"): (*_QUANTIZED, _refused("verify {bundle}", "torch")),
    ("profile", "cpu"): (
        Step("profile {bundle} --iterations 1 --warmup 0 --max-new-tokens 2 -o {out}", "wrote profile.json"),
    ),
    ("build", "tensorrt"): (Step(_BUILDS, "built, not run|none answers here", (0, 6)),),
    ("build", "tensorrt-rtx"): (Step(f"{_BUILDS} --target sm89", "built, not run"),),
}


@dataclass(frozen=True)
class Ran:
    """What came of a command."""

    words: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    raised: str | None  # an exception that was no exit


def install_rows() -> tuple[tuple[str, ...], ...]:
    """The extras of every command in README's table."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Install")[2].partition("\n## ")[0]
    return tuple(tuple(row.split(",")) for row in _ROW.findall(table))


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built without a network from a copy that holds what a user's folder does."""
    tree = folder / "tree"
    beside = (".venv", ".triton-server", "quickstart", "build")
    leave = shutil.ignore_patterns(".git", *beside, "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=leave)
    stray = tree / ".venv" / "lib"
    stray.mkdir(parents=True)
    (stray / "stray.py").write_text("")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(tree)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(tree)
    return wheel


def install(wheel: Path, extras: Sequence[str], folder: Path) -> Path:
    """The interpreter of a new environment with the wheel and the closure of these extras.

    Raises:
        importlib.metadata.PackageNotFoundError: the tests' own environment lacks a package of the closure.
    """
    venv.create(folder, symlinks=True, with_pip=False)
    (site,) = (folder / "lib").glob("python3.*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (ours,) = Distribution.discover(name="vlm-trt", path=[str(site)])
    for package in closure(ours.requires or [], extras).values():
        _link(package, site)
    return folder / "bin" / "python"


def install_with_pip(wheel: Path, extras: Sequence[str], folder: Path, first: Sequence[str] = ()) -> Path | str:
    """The interpreter of a new environment with the wheel as pip installs it; what pip said, where it could not.

    Args:
        wheel: of this project.
        extras: of the wheel.
        folder: of the environment.
        first: requirements that are installed before.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", "--retries", "1"]
    for wanted in (first, [f"{wheel}[{','.join(extras)}]"]):
        done = subprocess.run([*pip, *wanted], env=_clean(), capture_output=True, text=True) if wanted else None
        if done is not None and done.returncode:
            return done.stderr.strip()
    return python


def add_with_pip(python: Path, requirements: Sequence[str]) -> str:
    """Installs into an environment of `install`, whose links stay as they are; what pip said, where it could not."""
    (site,) = (python.parent.parent / "lib").glob("python3.*/site-packages")
    linked = {one.name: one.version for one in Distribution.discover(path=[str(site)])}
    kept = python.parent.parent / "constraints.txt"  # else pip might replace one, in the environment that it leads to
    kept.write_text("".join(f"{name}=={number}\n" for name, number in linked.items()))
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-compile", "--retries", "1"]
    done = subprocess.run([*pip, "-c", str(kept), *requirements], env=_clean(), capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def closure(requirements: Sequence[str], extras: Sequence[str]) -> dict[str, Distribution]:
    """Every installed package that these requirements bring, by name, and what those bring in turn."""
    found: dict[str, Distribution] = {}
    waiting = [(requirements, frozenset(extras))]
    seen = set[tuple[str, frozenset[str]]]()
    while waiting:
        lines, wanted = waiting.pop()
        for requirement in map(Requirement, lines):
            if requirement.marker and not any(requirement.marker.evaluate({"extra": one}) for one in (*wanted, "")):
                continue
            name = canonicalize_name(requirement.name)
            if (name, frozenset(requirement.extras)) not in seen:
                seen.add((name, frozenset(requirement.extras)))
                found[name] = distribution(name)
                waiting.append((found[name].requires or [], frozenset(requirement.extras)))
    return found


def _link(package: Distribution, site: Path) -> None:
    for part in _parts(package):
        target = site / part
        if not target.is_symlink():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(package.locate_file(part))))


def _parts(package: Distribution) -> Iterator[Path]:
    """Files and folders that are the package's alone: not a folder that several packages share, as `cuda` is."""
    found = dict[Path, None]()
    for file in package.files or []:
        if ".." in file.parts:
            continue  # a script
        depth = 1
        while depth < len(file.parts) and _is_shared(Path(str(package.locate_file(Path(*file.parts[:depth]))))):
            depth += 1
        found[Path(*file.parts[:depth])] = None
    yield from (part for part in found if "__pycache__" not in part.parts)


def _is_shared(folder: Path) -> bool:
    return folder.suffix not in (".dist-info", ".libs") and not (folder / "__init__.py").exists()


def run(python: Path, commands: Sequence[Sequence[str]], folder: Path) -> list[Ran]:
    """What comes of the commands, one after another in one process of that environment."""
    asked = json.dumps([[str(word) for word in words] for words in commands])
    done = outside(python, ["-c", _DRIVER, asked], folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return [Ran(tuple(words), *one) for words, one in zip(commands, found, strict=True)]


def run_others(python: Path, program: str, commands: Sequence[Sequence[str]], folder: Path) -> list[Ran]:
    """The same of a program that the packages brought, in a process for each."""
    done = [outside(python.with_name(program), words, folder) for words in commands]
    return [
        Ran(tuple(words), one.returncode, one.stdout, one.stderr, None)
        for words, one in zip(commands, done, strict=True)
    ]


def require(python: Path, steps: Sequence[Step], folder: Path, bundle: Path) -> None:
    """Runs the steps of a row in a folder of their own.

    Raises:
        AssertionError: one of them does not end or print as it should.
    """
    demo = ROOT / "examples" / "demo_model"
    picture, questions = folder / "scene.png", folder / "questions.jsonl"
    shutil.copy(demo / picture.name, picture)
    clip = folder / "clip.mp4"
    clip.write_bytes(b"\0\0\0\x10ftypmp42\0\0\0\0")  # a video by its first bytes
    line = {"images": [picture.name], "prompt": "What colour is the circle?", "reference": "red", "metric": "exact"}
    questions.write_text(json.dumps(line))
    boxes = folder / "boxes.json"
    boxes.write_text(json.dumps(_annotated(picture.name)))
    places = {
        "boxes": boxes,
        "bundle": bundle,
        "clip": clip,
        "checkpoint": ROOT / "tests" / "golden" / "qwen_vl" / "ntk-256" / "checkpoint",
        "out": folder / "out",
        "picture": picture,
        "questions": questions,
    }
    done = list[Ran]()
    for program, group in groupby(steps, lambda step: step.program):
        commands = [step.words.format(**places).split() for step in group]
        done += run(python, commands, folder) if program == "vlm-trt" else run_others(python, program, commands, folder)
    for step, ran in zip(steps, done, strict=True):
        printed = f"{step.program} {' '.join(ran.words)}: exit code {ran.exit_code}\n{ran.stdout}{ran.stderr}"
        assert ran.raised is None, f"{printed}{ran.raised}"
        assert ran.exit_code in step.codes, printed
        assert re.search(step.says, ran.stdout + ran.stderr, re.MULTILINE), printed


def _annotated(picture: str) -> dict[str, object]:
    """COCO annotations of the demo's scene: its two stars."""
    boxes = [[40, 60, 160, 160], [500, 460, 100, 100]]
    return {
        "images": [{"id": 1, "file_name": picture, "width": 640, "height": 640}],
        "categories": [{"id": 1, "name": "stars"}],
        "annotations": [
            {"id": at, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for at, box in enumerate(boxes, 1)
        ],
    }


def outside(program: Path, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """A process of a program of that environment, which sees neither this tree nor the tests' packages."""
    return subprocess.run([str(program), *words], cwd=folder, env=_clean(), capture_output=True, text=True)


def _clean() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {"OMP_NUM_THREADS": "1"}  # torch's threads would wait for those of the test beside it
