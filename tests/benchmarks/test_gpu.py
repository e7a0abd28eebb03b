"""The script for a GPU, run for real on the CPU; and what it says where a backend does not start or is wrong."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_expected
from benchmarks.gpu import child, data_sheet, forget_engines, main, with_floors
from benchmarks.gpu_parity import compared
from tests.conftest import GOLDEN
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend

CHECKPOINT = GOLDEN / "ntk-256" / "checkpoint"


def test_a_run_on_the_cpu(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    words = ["--checkpoint", str(CHECKPOINT), "--backend", "cpu", "abacus", "--precision", "fp32"]
    main([str(tmp_path / "scratch"), *words, "--max-seq-tokens", "700", "--max-batch", "2", "-o", str(output)])
    found = json.loads(output.read_text())
    assert found["environment"]["packages"]["onnxruntime"] and found["bytes_per_second"]["cpu"] > 1e9
    cpu, unknown = found["runs"]
    assert unknown["reason"].startswith("backend 'abacus' is unknown; choose one of")
    assert cpu["parity"]["passed"]
    stages = {"vision_encoder", "resampler", "prefill", "chunked_prefill", "decode_step", "batch"}
    assert stages == set(cpu["parity"]["worst"])
    assert cpu["latency_ms"]["resampler"]["median"] > 0
    assert [(step["batch"], step["cached_tokens"]) for step in cpu["decode"]] == [
        (batch, filled) for batch in (1, 2) for filled in (cpu["answer"]["prompt_tokens"], 677)
    ]
    assert all(step["floor_ms_cpu"] > 0 and step["times_floor_cpu"] > 0 for step in cpu["decode"])
    assert cpu["answer"]["new_tokens"] == 64 and cpu["answer"]["stages_ms"]["prefill"] > 0
    assert list((tmp_path / "scratch").glob("bundle*")) == []


def test_a_backend_that_computes_something_else_fails(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Bundle.open(exported("ntk-256"))
    engine = open_engine(bundle, Precision.FP32, CpuBackend(threads=1))
    kind = family("qwen_vl")
    tokenizer = kind.load_tokenizer(bundle.path / bundle.manifest.tokenizer.path, engine.model)
    file = tmp_path / "expected.npz"
    gpu_expected.record(CHECKPOINT, file, engine.limits)
    expected = gpu_expected.recorded(file, kind, tokenizer, engine.model, engine.limits)
    assert compared(engine, kind, expected)["passed"]
    wrong = replace(expected, patches=expected.patches * 1.01, logits=tuple(-one for one in expected.logits))
    found = compared(engine, kind, wrong)
    assert not found["passed"]
    assert found["worst"]["vision_encoder"]["relative"] > 5e-3 and found["worst"]["prefill"]["cosine"] < -0.99
    told = " ".join(found["failures"])
    assert "vision_encoder of picture 1 of 1: relative difference" in told and "prefill of one_image: " in told


def test_a_process_that_ends_is_a_reason() -> None:
    assert "ended with code 1: " in child("no_such_benchmark")["reason"]
    assert "No module named benchmarks.no_such_benchmark" in child("no_such_benchmark")["reason"]


@pytest.mark.parametrize(
    ("told", "known"),
    [
        ("NVIDIA H100 80GB HBM3, 81559 MiB, 570.86.15", "H100-80GB"),
        ("NVIDIA H100 PCIe, 81559 MiB, 570.86.15", None),  # another bandwidth
        ("NVIDIA A100-SXM4-40GB, 40960 MiB, 550.54", "A100-40GB"),
        ("NVIDIA L40S, 46068 MiB, 550.54; NVIDIA L4, 23034 MiB, 550.54", "L40S"),
        ("NVIDIA GeForce RTX 4090, 24564 MiB, 555.42", "RTX-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU, 16376 MiB, 555.42", None),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition, 97887 MiB, 580.1", "RTX-PRO-6000"),
        ("None", None),
    ],
)
def test_the_data_sheet_of_a_device(told: str, known: str | None) -> None:
    found = data_sheet(told)
    assert (None if found is None else found.name) == known


def test_floors_of_a_gpu() -> None:
    run = {"runs_on": "onnxruntime-cuda", "decode": [{"bytes": 3.35e9, "ms": {"median": 1.5}}]}
    with_floors(run, {"data_sheet": 3.35e12, "cuda": 3.0e12, "cpu": 5e10})
    assert run["decode"] == [
        {
            "bytes": 3.35e9, "ms": {"median": 1.5}, "floor_ms_data_sheet": 1.0, "times_floor_data_sheet": 1.5,
            "floor_ms_cuda": 1.117, "times_floor_cuda": 1.34,
        }
    ]  # fmt: skip


def test_engines_are_forgotten(exported: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="an engine is built with TensorRT-RTX")
    from vlm_trt.engines.build import Choices, build

    path = tmp_path / "bundle"
    shutil.copytree(exported("ntk-256", "fp16"), path)
    choices = Choices("tensorrt-rtx", Precision.FP16, (Component.RESAMPLER,), targets=("sm89",))
    assert len(build(path, choices)) == 1
    forget_engines(path)
    assert Bundle.open(path).manifest.engines == () and not (path / "engines").exists()
