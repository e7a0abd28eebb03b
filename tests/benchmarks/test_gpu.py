"""The kit for a GPU, rehearsed without one: on the CPU with the small shape, and over the stand-ins for CUDA."""

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import page
from benchmarks.gpu.prepare import graphs
from benchmarks.gpu.run import main
from benchmarks.gpu.steps import Record, Step
from benchmarks.gpu.wheels import entries, keep_only
from tests.conftest import ROOT
from vlm_trt.bundle.precision import Precision
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import read_recipe

Steps = list[dict[str, Any]]


@pytest.fixture(scope="module")
def kit(
    tmp_path_factory: pytest.TempPathFactory, exported: Callable[..., Path], demo_bundle: Callable[[str], Path]
) -> Path:
    """As `prepare` makes it, without wheels, its bundles those that other tests use too; once per run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "kit"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "quantized").exists():
            graphs(folder / "small", "small", [Precision.FP16])
            shutil.copytree(exported("ntk-256", "fp16"), folder / "golden" / "fp16")
            shutil.copytree(demo_bundle("fp32"), folder / "unquantized")
            quantize(folder / "unquantized", Choices(read_recipe("int8-weight"), unverified=True), None)
            (folder / "unquantized").rename(folder / "quantized")
    return folder


def rehearsed(kit: Path, out: Path, device: str, *stages: str) -> dict[str, Steps]:
    words = [*stages, "--out", str(out / "results"), "--kit", str(kit), "--scratch", str(out / "scratch")]
    words += ["--deadline", "3600"]  # a busy machine is no failure
    assert main([*words, "--device", device, "--size", "small", "--precision", "fp16"]) == 0
    return {stage: json.loads((out / "results" / f"{stage}.json").read_text())["steps"] for stage in stages}


def failures(steps: Steps) -> list[str]:
    return [f"{one['step']}: {one['failed']}" for one in steps if "failed" in one]


def test_everything_but_cuda_runs_on_the_cpu(kit: Path, tmp_path: Path) -> None:
    """With seeded weights written to where the graphs expect them, and the reference made from the same seeds."""
    found = rehearsed(kit, tmp_path, "cpu", "install", "smoke", "golden", "official", "quantized")
    for stage, steps in found.items():
        assert failures(steps) == [], stage
    golden = {one["step"]: one["found"] for one in found["golden"]}
    assert golden["fp16 on cpu"]["passed"], golden
    official = {one["step"]: one["found"] for one in found["official"]}
    parity = official["fp16 on cpu: parity"]
    assert parity["passed"], parity["failures"]
    assert {"vision_encoder", "resampler", "prefill", "decode_step", "batch"} <= set(parity["worst"])
    assert official["fp16 on cpu: in place"]["positions_written"] == [[22], [22]]
    steps = [one for name, one in official.items() if ": decode " in name]
    assert {(one["batch"], one["cached_tokens"]) for one in steps} == {(1, 300), (1, 480), (4, 300), (4, 480)}
    assert not list((tmp_path / "scratch").glob("small-*")), "weights stay on the disk"
    text = page.page(page.results(tmp_path / "results"))
    assert "Measured ceilings: " in text and "| fp16 on cpu | resampler, 1 picture |" in text
    assert "| golden | small bundles" in text and "| fp16 | cpu | 4 × 480 |" in text


def test_everything_but_numbers_runs_over_the_stand_ins(kit: Path, tmp_path: Path) -> None:
    if not (ROOT / ".cuda-provider" / "installed").exists():
        pytest.skip("ONNX Runtime's CUDA provider is not here; fetch it (270 MB): scripts/cuda_provider")
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, and the stand-ins for CUDA's libraries are built with it")
    found = rehearsed(kit, tmp_path, "stand-in", "install", "smoke", "official")
    assert failures(found["install"]) == failures(found["smoke"]) == []
    official = {one["step"]: one for one in found["official"]}
    # The patch embedding is cuDNN's, for which there is no stand-in: what needs pictures fails, and is a line.
    pictures = {name for name, one in official.items() if "failed" in one}
    assert all("parity" in one or "picture" in one for one in pictures), failures(found["official"])
    assert 0 < official["fp16 on cuda-graph: captured and not, 96 steps"]["found"]["graphs"] <= 8


def test_torch_as_others_run_it(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling takes minutes on a CPU, and is torch's affair
    file = tmp_path / "results" / "baselines.json"
    file.parent.mkdir()
    before = {"step": "torch, graph, 1 × 480", "failed": "an earlier run's"}
    file.write_text(json.dumps({"steps": [before]}))
    steps = {one["step"]: one for one in rehearsed(kit, tmp_path, "cpu", "baselines")["baselines"]}
    assert steps["torch, eager, 1 × 480"]["found"]["ms"]["median"] > 0
    assert "CUDA graphs need a GPU" in steps["torch, graph, 1 × 480"]["failed"]


def test_a_step_that_fails_is_a_line_and_one_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    ran: list[str] = []

    def steps() -> Iterator[Step]:
        yield "first", lambda: ran.append("first") or {"value": 1}
        yield "second", lambda: 1 / 0
        yield "third", lambda: ran.append("third")

    for _ in range(2):
        Record(tmp_path / "stage.json").run(steps())
    found = json.loads((tmp_path / "stage.json").read_text())["steps"]
    assert ran == ["first", "third"] and [one["step"] for one in found] == ["first", "second", "third"]
    assert found[0]["found"] == {"value": 1} and found[1]["failed"] == "ZeroDivisionError: division by zero"


def test_a_process_that_dies_is_a_line_and_what_comes_after_it_runs(tmp_path: Path) -> None:
    script = f"""
import os
from pathlib import Path
from benchmarks.gpu.steps import Record
def steps():
    yield "dies", lambda: os.abort()
    yield "lives", lambda: 1
Record(Path({str(tmp_path / "stage.json")!r})).run(steps())
"""
    codes = [
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True).returncode
        for _ in range(2)
    ]
    found = json.loads((tmp_path / "stage.json").read_text())["steps"]
    assert codes == [-6, 0] and found[0]["failed"] == "the process ended in the middle of it" and found[1]["found"] == 1


def test_a_stage_that_does_not_end_is_ended(kit: Path, tmp_path: Path) -> None:
    words = ["smoke", "--out", str(tmp_path), "--kit", str(kit), "--scratch", str(tmp_path / "scratch")]
    assert main([*words, "--device", "cpu", "--deadline", "1"]) == 0
    file = tmp_path / "smoke.json"
    assert not file.exists() or not any(one.get("running") for one in json.loads(file.read_text())["steps"])


def test_device_code_for_other_gpus_is_zeroed(tmp_path: Path) -> None:
    """A library of one fat binary with code for two GPUs and PTX, between other bytes."""

    def entry(kind: int, capability: int, code: bytes) -> bytes:
        header = kind.to_bytes(2, "little") + b"\1\1" + (64).to_bytes(4, "little") + len(code).to_bytes(8, "little")
        return header + bytes(12) + capability.to_bytes(4, "little") + bytes(32) + code

    content = entry(2, 80, b"a" * 64) + entry(2, 90, b"b" * 64) + entry(1, 90, b"p" * 64)
    fat = b"\x50\xed\x55\xba\1\0\x10\0" + len(content).to_bytes(8, "little") + content
    library = tmp_path / "lib.so"
    library.write_bytes(b"before" + fat + b"after")
    assert [found for _, _, found in entries(bytearray(library.read_bytes()))] == [80, 90, -1]
    assert keep_only(library, 90) == 128
    left = library.read_bytes()
    assert left.startswith(b"before") and left.endswith(b"after")
    assert (left.count(b"a" * 64), left.count(b"b" * 64), left.count(b"p" * 64)) == (0, 1, 0)


def test_the_page_is_what_the_results_say() -> None:
    assert (ROOT / "docs" / "gpu.md").read_text() == page.page(page.results(page.RESULTS))
