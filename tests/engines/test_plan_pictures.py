"""What a plan says of pictures of any size, and of the largest published checkpoints, from their small files alone."""

import json
from pathlib import Path

import pytest

from benchmarks.shapes import qwen2_shape, write_small_files
from tests.commands.runs import vlm_trt
from tests.families.published.published_configs import QWEN2_5_VL_7B, QWEN2_5_VL_72B, QWEN2_VL_2B, QWEN2_VL_72B, Config

ROOM = ("--ram-gib", 512, "--disk-gib", 1000)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    write_small_files(tmp_path / "2b", qwen2_shape(QWEN2_VL_2B))
    return tmp_path / "2b"


@pytest.mark.parametrize("config", [QWEN2_VL_72B, QWEN2_5_VL_72B], ids=["qwen2-vl", "qwen2.5-vl"])
def test_72b(config: Config, tmp_path: Path) -> None:
    """73.4 billion weights: 147 GB in half precision, which no single H100 holds; about 40 GB in 4 bits."""
    write_small_files(tmp_path / "72b", qwen2_shape(config))
    h100 = ("--target", "H100-80GB", "--max-batch", 1, "--max-seq-tokens", 8192, *ROOM)
    refused = vlm_trt("plan", tmp_path / "72b", *h100)
    assert refused.exit_code == 8, refused.output
    sentence = (
        "142.6 GiB of device memory and the H100-80GB has 74.5 GiB. --precision int8-weight-fp16 --max-seq-tokens"
    )
    assert sentence in refused.stderr
    row = next(line for line in refused.stdout.splitlines() if line.startswith("H100-80GB"))
    assert row.count("does not fit") == 3
    plans = json.loads(vlm_trt("plan", tmp_path / "72b", *h100, "--precision", "int4-fp16", "--json").stdout)["plans"]
    assert plans["fp16"]["weights"] == pytest.approx(146.8e9, rel=0.01)
    assert plans["int4-fp16"]["weights"] == pytest.approx(41e9, rel=0.03)
    assert plans["fp16"]["kv_bytes_per_sequence"] == 2 * 80 * 8 * 128 * 2 * 8192
    assert plans["int4-fp16"]["shortfalls"] == [] and plans["fp16"]["shortfalls"]
    assert vlm_trt("plan", tmp_path / "72b", *h100, "--precision", "int4-fp16").exit_code == 0
    for gpu, precision, fits in (("B200", "fp16", True), ("H200", "fp16", False), ("H200", "int8-weight-fp16", True)):
        done = vlm_trt("plan", tmp_path / "72b", *h100, "--target", gpu, "--precision", precision)
        assert (done.exit_code == 0) is fits, done.output


def test_bounds_of_pictures_change_what_they_take(small: Path) -> None:
    plans = [
        json.loads(vlm_trt("plan", small, *ROOM, "--json", *bounds).stdout)["plans"]
        for bounds in ((), ("--max-pixels", 4 * 1_003_520), ("--min-pixels", 6272, "--max-pixels", 6272))
    ]
    assert [one["fp16"]["patches"] for one in plans] == [5120, 20480, 32]
    assert [one["fp16"]["score_bytes"] for one in plans] == [16 * n**2 * 4 for n in (5120, 20480, 32)]
    # TensorRT fuses attention in half precision only.
    for precision, written in (("fp16", False), ("fp32", True)):
        larger, usual = (one[precision]["activation_bytes"] for one in (plans[1], plans[0]))
        assert (larger - usual > 16 * 20480**2 * 4 * 0.8) is written
    shown = vlm_trt("plan", small, *ROOM, "--max-pixels", 4 * 1_003_520)
    assert "1 pictures per run of up to 4014080 pixels" in shown.stdout and "scores of 20480 patches" in shown.stdout


def test_a_picture_that_the_host_cannot_hold_names_one_that_it_can(small: Path) -> None:
    """The published bound: 65,536 patches, 256 GiB of scores."""
    asked = ("--precision", "fp32", "--for", "cpu", "--max-pixels", 12_845_056, "--ram-gib", 64)
    refused = vlm_trt("plan", small, *asked)
    assert refused.exit_code == 8, refused.output
    assert "answering on the CPU needs 2" in refused.stderr and " and the host has 64.0 GiB. " in refused.stderr
    assert "GiB of memory (256.0 GiB of it for attention within pictures of 65536 patches)" in refused.stderr
    option, pixels, *rest = refused.stderr.rpartition(". ")[2].split()
    assert option == "--max-pixels" and rest == ["would", "fit"] and int(pixels) > 3_000_000
    accepted = vlm_trt("plan", small, *asked, option, pixels)
    assert accepted.exit_code == 0 and "fp32: cpu fits this host" in accepted.stderr


def test_smaller_pictures_are_tried_with_fewer_sequences_too(small: Path) -> None:
    """Neither alone is enough for this host."""
    asked = ("--precision", "int4", "--for", "cpu", "--max-pixels", 12_845_056, "--max-batch", 8, "--ram-gib", 6)
    refused = vlm_trt("plan", small, *asked)
    assert refused.exit_code == 8, refused.output
    setting = refused.stderr.rpartition(". ")[2].removesuffix(" would fit\n").split()
    assert "--max-pixels" in setting and "--max-batch" in setting
    accepted = vlm_trt("plan", small, *asked, *setting)
    assert accepted.exit_code == 0 and "cpu fits this host" in accepted.stderr


def test_a_device_that_cannot_hold_the_scores(small: Path) -> None:
    asked = ("--precision", "fp32", "--target", "L4", "--max-pixels", 12_845_056, *ROOM)
    refused = vlm_trt("plan", small, *asked)
    assert refused.exit_code == 8 and "of device memory (256.0 GiB of it for attention within pi" in refused.stderr
    assert refused.stderr.rpartition(". ")[2].startswith("--max-pixels ")


def test_bf16_is_no_type_of_the_cpu(small: Path) -> None:
    refused = vlm_trt("plan", small, "--precision", "bf16", "--for", "cpu", *ROOM)
    assert refused.exit_code == 8 and "bf16 does not run on the CPU. " in refused.stderr
    assert refused.stderr.endswith("--precision fp16 would fit\n"), refused.stderr


def test_bounds_are_refused_as_an_export_refuses_them(small: Path, tmp_path: Path) -> None:
    beyond = vlm_trt("plan", small, "--max-pixels", 20_000_000)
    assert beyond.exit_code == 2 and "the checkpoint takes pictures of 3136 to 12845056 pixels" in beyond.stderr
    write_small_files(tmp_path / "7b", qwen2_shape(QWEN2_5_VL_7B))
    long = vlm_trt("plan", tmp_path / "7b", "--max-pixels", 12_845_056, "--max-seq-tokens", 8192)
    assert long.exit_code == 2 and "--max-seq-tokens 8192 does not hold one picture (16384 tokens)" in long.stderr
