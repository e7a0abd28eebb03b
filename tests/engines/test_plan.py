"""What a plan says of the official shape, and what it refuses; docs/planning.md measures how true it is."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.make_checkpoint import write_checkpoint
from tests.commands.runs import vlm_trt
from tests.conftest import GOLDEN
from vlm_trt.bundle.config import ModelConfig, usual_limits
from vlm_trt.bundle.errors import ResourceError, UsageError
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.commands.plan import weight_bytes
from vlm_trt.engines.gpus import GPUS, gpu_named
from vlm_trt.engines.plan import GIB, Machine, Plan, plan, require_fit, shortfalls
from vlm_trt.families.qwen_vl.config import read_config

CHECKPOINT = GOLDEN / "ntk-256" / "checkpoint"


@pytest.fixture(scope="module")
def official() -> ModelConfig:
    """The sizes of Qwen-VL-Chat."""
    small = read_config(CHECKPOINT)
    vision = replace(
        small.vision, image_size=448, patch_size=14, width=1664, layers=48, heads=16, mlp_width=8192, position_grid=16
    )
    resampler = replace(small.resampler, queries=256, vision_width=1664, hidden=4096, heads=32)
    decoder = replace(
        small.decoder, vocab_size=151936, hidden=4096, layers=32, heads=32, kv_heads=32, head_dim=128, mlp_width=11008,
        rotary_dim=128, trained_tokens=2048, max_positions=8192,
    )  # fmt: skip
    return replace(small, vision=vision, resampler=resampler, decoder=decoder)


def plan_of(model: ModelConfig, precision: Precision = Precision.FP16, **limits: int) -> Plan:
    return plan(model, replace(usual_limits(model), **limits), precision, weight_bytes(model, precision))


def test_the_official_shape(official: ModelConfig) -> None:
    found = plan_of(official)
    assert found.weights == pytest.approx(19.3e9, rel=0.01)
    assert found.kv_bytes_per_sequence == GIB  # 2·32 layers·32 heads·128·2 bytes·2048 positions
    assert found.kv_bytes == 4 * GIB
    # 15.4 GB of decoder without 1.2 GB of embeddings, and 4 GiB of cache, at 4.8 TB/s
    assert found.floor_ms(gpu_named("H200")) == pytest.approx(1000 * (15.44e9 - 1.245e9 + 4 * GIB) / 4.8e12, rel=0.01)
    assert plan_of(official, Precision.FP32).weights == pytest.approx(2 * found.weights, rel=0.01)


def test_what_does_not_fit_names_what_would(official: ModelConfig) -> None:
    l4 = Machine(gpu=gpu_named("L4"))
    asked = plan_of(official)
    assert "running needs" in shortfalls(asked, l4)[0] and "the L4 has 22.4 GiB" in shortfalls(asked, l4)[0]
    others = [("--max-batch 3", plan_of(official, max_batch=3)), ("--max-batch 1", plan_of(official, max_batch=1))]
    with pytest.raises(ResourceError, match=r"device memory .*\. --max-batch 3 would fit"):
        require_fit(asked, others, l4)
    with pytest.raises(ResourceError, match="No smaller setting fits either: a larger machine is needed"):
        require_fit(asked, others, Machine(gpu=gpu_named("T4")))
    with pytest.raises(ResourceError, match=r"building need 2\d\.\d GiB of memory and the host has 16\.0 GiB"):
        require_fit(asked, [], Machine(ram_bytes=16 * GIB))
    with pytest.raises(ResourceError, match=r"graphs and engines need 3\d\.\d GiB of disk and 10\.0 GiB are free"):
        require_fit(asked, [], Machine(disk_bytes=10 * GIB))
    require_fit(asked, [], Machine(gpu=gpu_named("A100-40GB"), ram_bytes=64 * GIB, disk_bytes=100 * GIB))


def test_every_setting_that_is_named_fits(official: ModelConfig, tmp_path: Path) -> None:
    """Typed again as it was named, the plan is accepted."""
    write_config_of_official(tmp_path)
    room = ("--ram-gib", 64, "--disk-gib", 200)
    for gpu, asked in (("L4", ()), ("A100-40GB", ("--max-batch", 24)), ("L40S", ("--precision", "fp32"))):
        refused = vlm_trt("plan", tmp_path, "--gpu", gpu, *room, *asked)
        assert refused.exit_code == 8, refused.output
        instead = refused.output.rpartition(". ")[2].removesuffix(" would fit\n").split()
        assert instead[0].startswith("--"), refused.output
        given = dict(zip(asked[::2], asked[1::2], strict=True)) | dict(zip(instead[::2], instead[1::2], strict=True))
        accepted = vlm_trt("plan", tmp_path, "--gpu", gpu, *room, *(word for pair in given.items() for word in pair))
        assert accepted.exit_code == 0, accepted.output
        assert f"fits the {gpu}" in accepted.output


def write_config_of_official(folder: Path) -> None:
    """What is read of a checkpoint: its small files."""
    write_checkpoint(folder / "xs", "XS", ranks=1000)
    raw = json.loads((folder / "xs" / "config.json").read_text())
    raw |= {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 22016,
        "kv_channels": 128, "vocab_size": 151936,
    }  # fmt: skip
    raw["visual"] |= {"width": 1664, "layers": 48, "heads": 16, "mlp_ratio": 4.9231, "output_dim": 4096}
    for name in ("generation_config.json", "qwen.tiktoken"):
        shutil.copy(folder / "xs" / name, folder / name)
    (folder / "config.json").write_text(json.dumps(raw))


def test_a_share_of_a_device(tmp_path: Path) -> None:
    """What the data sheet says is not what a slice, or a GPU that others use, has."""
    room = ("--ram-gib", 64, "--disk-gib", 200)
    write_config_of_official(tmp_path)
    assert vlm_trt("plan", tmp_path, "--gpu", "H200", *room).exit_code == 0
    for which, name in ((("--gpu", "H200"), "H200"), ((), "device")):
        refused = vlm_trt("plan", tmp_path, *which, "--vram-gib", 22, *room)
        assert refused.exit_code == 8, refused.output
        assert f"of device memory and the {name} has 22.0 GiB. --max-batch " in refused.output
    assert "fits the device" in vlm_trt("plan", tmp_path, "--vram-gib", 40, *room).output


def test_bf16_is_not_planned_below_sm80(official: ModelConfig) -> None:
    t4, l4 = (Machine(gpu=gpu_named(name)) for name in ("T4", "L4"))
    small = replace(official, decoder=replace(official.decoder, layers=2), vision=replace(official.vision, layers=2))
    bf16 = plan_of(small, Precision.BF16)
    assert shortfalls(bf16, t4) == ["bf16 needs sm80 and the T4 is sm75"] and shortfalls(bf16, l4) == []
    refused = vlm_trt("plan", CHECKPOINT, "--gpu", "T4", "--precision", "bf16")
    assert refused.exit_code == 8 and "is sm75. --precision fp16 would fit" in refused.output
    assert "needs sm80" in next(line for line in refused.stdout.splitlines() if line.startswith("T4 "))


@pytest.mark.parametrize(("asked", "sentence"), [(100_000, "beyond the model's"), (64, "does not hold one picture")])
def test_limits_that_an_export_refuses(asked: int, sentence: str) -> None:
    refused = vlm_trt("plan", CHECKPOINT, "--max-seq-tokens", asked)
    assert refused.exit_code == 2 and sentence in refused.output, refused.output


def test_a_gpu_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="no GPU 'Voodoo' is known; choose one of T4, A10"):
        gpu_named("Voodoo")
    assert gpu_named("l40s") in GPUS


def test_the_command_on_a_small_checkpoint() -> None:
    shown = vlm_trt("plan", CHECKPOINT)
    assert shown.exit_code == 0, shown.output
    assert (
        "weights, vision encoder" in shown.output and "H200" in shown.output and "fp16 fits this host" in shown.output
    )
    plans = json.loads(vlm_trt("plan", CHECKPOINT, "--json").stdout)["plans"]
    assert plans["fp16"]["weight_bytes"] == weight_bytes(read_config(CHECKPOINT), Precision.FP16)
    assert set(plans) == {"fp32", "fp16", "bf16"} and plans["fp16"]["shortfalls"] == []
    assert plans["fp16"]["weight_bytes"][Component.DECODER] > 0


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    refused = vlm_trt("plan", tmp_path)
    assert refused.exit_code == 3 and "config.json" in refused.output


def test_quantized_weights_are_counted_as_the_recipes_make_them(official: ModelConfig) -> None:
    """8 bits: half of fp16 but for the embeddings; 4 bits: the decoder's matrices are an eighth, with scales."""
    half, eight, four = (plan_of(official, one) for one in (Precision.FP16, Precision.INT8_FP16, Precision.INT4_FP16))
    embeddings = 2 * 151936 * 4096
    assert eight.weights == pytest.approx(embeddings + (half.weights - embeddings) / 2, rel=0.01)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert eight.weights - four.weights == pytest.approx(matrices * (1 / 2 - 2 / 128), rel=0.01)
    assert four.kv_bytes == half.kv_bytes


def test_each_kind_needs_its_gpu(official: ModelConfig) -> None:
    t4, a100 = (Machine(gpu=gpu_named(name)) for name in ("T4", "A100-80GB"))
    assert "int4-fp16 needs sm80 and the T4 is sm75" in shortfalls(plan_of(official, Precision.INT4_FP16), t4)
    assert shortfalls(plan_of(official, Precision.FP8_FP16), a100)[0] == "fp8-fp16 needs sm89 and the A100-80GB is sm80"
    assert not any("needs sm" in one for one in shortfalls(plan_of(official, Precision.INT8_FP16), t4))
