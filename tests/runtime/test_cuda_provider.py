"""ONNX Runtime's real CUDA provider, without a GPU: where nodes run, what a step asks of the device, what is captured.

The libraries below it are stand-ins (`tests/cuda_stand_in`), so that nothing is computed: numbers and milliseconds need
a GPU (`benchmarks/gpu`).
"""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.cuda_stand_in.build import build

PROVIDER = ROOT / ".cuda-provider"
PRECISIONS = ("fp32", "fp16", "bf16")
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
SHAPES = {"Concat"}  # of sizes, to a shape: ONNX Runtime keeps it on the CPU, where shapes are
# What a decode step of the checkpoint (two layers) launches. A number may fall; who raises one, says why.
KERNELS = {"fp32": 48, "fp16": 67, "bf16": 67}
PRODUCTS = {"fp32": 11, "fp16": 11, "bf16": 11}  # matrix products, by cuBLAS

Probe = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the libraries, built once per run."""
    if not (PROVIDER / "installed").exists():
        pytest.skip("ONNX Runtime's CUDA provider is not here; fetch it (270 MB): scripts/cuda_provider")
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, and the stand-ins for CUDA's libraries are built with it")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if base.name.startswith("popen-") else base) / "stand-ins"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            library = "onnxruntime-gpu/onnxruntime/capi/libonnxruntime_providers_cuda.so"
            build(folder, PROVIDER / library, PROVIDER / "headers" / "nvidia" / "cu13" / "include")
    return folder


@pytest.fixture
def probe(stand_ins: Path, exported: Callable[..., Path], tmp_path: Path) -> Probe:
    """A function: precision, further environment → what `tests.cuda_stand_in.probe` found."""

    def run(precision: str, **more: str) -> dict[str, Any]:
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(stand_ins),
            "PYTHONPATH": os.pathsep.join(map(str, (PROVIDER / "onnxruntime-gpu", ROOT / ".links", ROOT))),
            "CUDA_CALLS": str(tmp_path / "calls.txt"),
            **more,
        }
        command = [sys.executable, "-m", "tests.cuda_stand_in.probe", str(exported("ntk-256", precision)), precision]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


@pytest.mark.parametrize("precision", PRECISIONS)
def test_all_that_computes_runs_on_the_gpu_and_the_cache_in_place(probe: Probe, precision: str) -> None:
    found = probe(precision)
    for component, placed in found["placed"].items():
        assert CUDA in placed, f"{component}: {placed}"
        assert set(placed.get(CPU, ())) <= SHAPES, f"{component}: {placed[CPU]}"
        assert not any(one.startswith("Memcpy") for nodes in placed.values() for one in nodes), f"{component}: {placed}"
    prefill, step = found["eager"]["prefill"], found["eager"]["step"]
    for run in (prefill, step):
        assert max(run["copied_on_device"], default=0) < found["eager"]["cache_row_bytes"] // 8
        assert any("attention_kernel" in name for name in run["kernel_names"]), "attention is not the fused kernel's"
    assert step["allocated"] == 0 and found["eager"]["options"]["use_tf32"] == "0"
    assert (step["kernels"], step["products"]) == (KERNELS[precision], PRODUCTS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_captured_step_is_one_launch(probe: Probe, precision: str) -> None:
    """Also after a longer prompt: nothing that was captured has moved."""
    captured = probe(precision)["captured"]
    assert captured["refused"] is None and captured["graphs"] == captured["capturing"]["captures"] == 1
    assert captured["capturing"]["refused"] == []  # what CUDA would refuse while it captures
    for run in (captured["replayed"], captured["after_a_longer_prompt"]):
        assert (run["replays"], run["kernels"], run["products"], run["captures"]) == (1, 0, 0, 0)
        assert run["waits"] == 1 and run["allocated"] == 0


def test_where_captures_are_refused_steps_run_uncaptured(probe: Probe) -> None:
    captured = probe("fp16", CUDA_REFUSES_CAPTURES="1")["captured"]
    assert "cudaStreamEndCapture" in captured["refused"] and captured["graphs"] == 0
    for run in (captured["replayed"], captured["after_a_longer_prompt"]):
        assert (run["replays"], run["kernels"], run["captures"]) == (0, KERNELS["fp16"], 0)
