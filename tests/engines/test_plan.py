"""What a plan says of the official shape, and what it refuses; docs/planning.md measures how true it is."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.make_checkpoint import write_checkpoint
from tests.commands.runs import vlm_trt
from tests.conftest import GOLDEN, ROOT
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ModelConfig, usual_limits
from vlm_trt.bundle.errors import ResourceError, UsageError
from vlm_trt.bundle.parts import OpenClipTower, ResamplerConnector
from vlm_trt.bundle.precision import Precision
from vlm_trt.commands.weight_sizes import weight_bytes
from vlm_trt.engines.gpus import GPUS, capability, gpu_named
from vlm_trt.engines.plan import GIB, Machine, Plan, Stage, plan, require_fit, shortfalls
from vlm_trt.families.qwen_vl.config import read_config

CHECKPOINT = GOLDEN / "ntk-256" / "checkpoint"


@pytest.fixture(scope="module")
def official() -> ModelConfig:
    """The sizes of Qwen-VL-Chat."""
    small = read_config(CHECKPOINT)
    assert isinstance(small.vision, OpenClipTower)
    vision = replace(
        small.vision, image_size=448, patch_size=14, width=1664, layers=48, heads=16, mlp_width=8192, position_grid=16
    )
    assert isinstance(small.connector, ResamplerConnector)
    connector = replace(small.connector, tokens=256, vision_width=1664, hidden=4096, heads=32)
    block = replace(small.decoder.block, heads=32, kv_heads=32, head_dim=128, mlp_width=11008)
    decoder = replace(
        small.decoder, vocab_size=151936, hidden=4096, layers=32, block=block, rotary_dim=128, trained_tokens=2048,
        max_positions=8192,
    )  # fmt: skip
    return replace(small, vision=vision, connector=connector, decoder=decoder)


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
    with pytest.raises(ResourceError, match="No other setting fits either: a larger machine is needed"):
        require_fit(asked, others, Machine(gpu=gpu_named("T4")))
    with pytest.raises(ResourceError, match=r"building needs 2\d\.\d GiB of memory and the host has 16\.0 GiB"):
        require_fit(asked, [], Machine(ram_bytes=16 * GIB))
    with pytest.raises(ResourceError, match=r"graphs and engines need 3\d\.\d GiB of disk and 10\.0 GiB are free"):
        require_fit(asked, [], Machine(disk_bytes=10 * GIB))
    require_fit(asked, [], Machine(gpu=gpu_named("A100-40GB"), ram_bytes=64 * GIB, disk_bytes=100 * GIB))


def test_every_setting_that_is_named_fits(official: ModelConfig, tmp_path: Path) -> None:
    """Typed again as it was named, the plan is accepted."""
    write_config_of_official(tmp_path)
    room = ("--ram-gib", 128, "--disk-gib", 200)
    for gpu, asked in (("L4", ()), ("A100-40GB", ("--max-batch", 24)), ("L40S", ("--precision", "fp32"))):
        refused = vlm_trt("plan", tmp_path, "--target", gpu, *room, *asked)
        assert refused.exit_code == 8, refused.output
        instead = refused.output.rpartition(". ")[2].removesuffix(" would fit\n").split()
        assert instead[0].startswith("--"), refused.output
        given = dict(zip(asked[::2], asked[1::2], strict=True)) | dict(zip(instead[::2], instead[1::2], strict=True))
        accepted = vlm_trt("plan", tmp_path, "--target", gpu, *room, *(word for pair in given.items() for word in pair))
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
    room = ("--ram-gib", 128, "--disk-gib", 200)
    write_config_of_official(tmp_path)
    assert vlm_trt("plan", tmp_path, "--target", "H200", *room).exit_code == 0
    for which, name in ((("--target", "H200"), "H200"), ((), "device")):
        refused = vlm_trt("plan", tmp_path, *which, "--vram-gib", 22, *room)
        assert refused.exit_code == 8, refused.output
        assert f"of device memory and the {name} has 22.0 GiB. --max-batch " in refused.output
    assert "fits the device" in vlm_trt("plan", tmp_path, "--vram-gib", 40, *room).output


def test_bf16_is_not_planned_below_sm80(official: ModelConfig) -> None:
    t4, l4 = (Machine(gpu=gpu_named(name)) for name in ("T4", "L4"))
    small = replace(official, decoder=replace(official.decoder, layers=2), vision=replace(official.vision, layers=2))
    bf16 = plan_of(small, Precision.BF16)
    run = (Stage.RUN,)
    assert shortfalls(bf16, t4, run) == ["bf16 needs sm80 and the T4 is sm75"] and shortfalls(bf16, l4, run) == []
    refused = vlm_trt("plan", CHECKPOINT, "--target", "T4", "--precision", "bf16")
    assert refused.exit_code == 8 and "is sm75. --precision fp16 would fit" in refused.output
    assert "needs sm80" in next(line for line in refused.stdout.splitlines() if line.startswith("T4 "))


@pytest.mark.parametrize(("asked", "sentence"), [(100_000, "beyond the model's"), (64, "does not hold one picture")])
def test_limits_that_an_export_refuses(asked: int, sentence: str) -> None:
    refused = vlm_trt("plan", CHECKPOINT, "--max-seq-tokens", asked)
    assert refused.exit_code == 2 and sentence in refused.output, refused.output


def test_a_gpu_that_is_not_known() -> None:
    with pytest.raises(UsageError, match="no GPU 'Voodoo' is known; choose one of T4, A10"):
        gpu_named("Voodoo")
    with pytest.raises(UsageError, match="GPUs of sm89 have different memory; name one of them: L4, L40S, RTX-4090"):
        gpu_named("sm89")
    assert gpu_named("l40s") in GPUS
    assert [capability(name) for name in ("L4", "sm120", "native")] == ["sm89", "sm120", "native"]


def test_the_command_on_a_small_checkpoint() -> None:
    shown = vlm_trt("plan", CHECKPOINT)
    assert shown.exit_code == 0, shown.output
    assert (
        "weights, vision encoder" in shown.output
        and "H200" in shown.output
        and "fp16: export and verify fit this host" in shown.output
    )
    plans = json.loads(vlm_trt("plan", CHECKPOINT, "--json").stdout)["plans"]
    assert plans["fp16"]["weight_bytes"] == weight_bytes(read_config(CHECKPOINT), Precision.FP16)
    assert set(plans) == {"fp32", "fp16", "bf16"} and plans["fp16"]["shortfalls"] == []
    assert plans["fp16"]["weight_bytes"][Component.DECODER] > 0


def test_only_what_was_asked_for_is_refused(tmp_path: Path) -> None:
    """A host that exports need not build, and one that builds need not verify."""
    write_config_of_official(tmp_path)
    room = ("--ram-gib", 16, "--disk-gib", 25)
    exported = vlm_trt("plan", tmp_path, *room, "--for", "export")
    assert exported.exit_code == 0 and "fp16: export fits this host (--for build asks of" in exported.stderr
    built = vlm_trt("plan", tmp_path, *room, "--for", "build")
    assert built.exit_code == 8 and re.search(r"building needs 28\.\d GiB of memory and the host has 16", built.stderr)
    assert "; " not in built.stderr and "--precision int8-weight-fp16 would fit" in built.stderr
    both = vlm_trt("plan", tmp_path, *room, "--for", "export", "--for", "build", "--precision", "int4")
    assert both.exit_code == 8 and "graphs and engines need " in both.stderr
    nowhere = vlm_trt("plan", tmp_path, "--for", "run")
    assert nowhere.exit_code == 2 and "--for run asks of a device; name it with --target" in nowhere.stderr
    for stage in ("export: memory", "export: disk", "verify: memory", "build: minutes", "run: device memory"):
        assert stage in exported.stdout


def test_what_is_done_already_need_not_fit(verified: Callable[..., Path]) -> None:
    done = vlm_trt("plan", verified("ntk-256"), "--precision", "fp32", "--ram-gib", 0.01, "--disk-gib", 0.01)
    assert done.exit_code == 0 and "fp32: exported and verified already" in done.stderr
    rest = vlm_trt("plan", verified("ntk-256"), "--precision", "fp16", "--disk-gib", 0.0001)
    assert rest.exit_code == 8 and "graphs need " in rest.stderr


def test_a_plan_needs_none_of_what_does_the_work() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxruntime', 'tensorrt_rtx'): sys.modules[name] = None\n"
        f"from vlm_trt import cli\ncli.main(['plan', {str(CHECKPOINT)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_int4_where_no_gpu_has_it(tmp_path: Path) -> None:
    """The T4's tensor cores have none: 8-bit weights are what works there."""
    write_config_of_official(tmp_path)
    room = ("--ram-gib", 128, "--disk-gib", 200, "--target", "T4")
    refused = vlm_trt("plan", tmp_path, "--precision", "int4", *room)
    assert refused.exit_code == 8
    assert refused.stderr.endswith("needs sm80 and the T4 is sm75. --precision int8-weight-fp16 would fit\n")
    assert vlm_trt("plan", tmp_path, "--precision", "int8-weight-fp16", *room).exit_code == 0


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    refused = vlm_trt("plan", tmp_path)
    assert refused.exit_code == 3 and "config.json" in refused.output


def test_quantized_weights_are_counted_as_the_recipes_make_them(official: ModelConfig) -> None:
    """8 bits: half of fp16 but for the embeddings; 4 bits: a quarter of the decoder's matrices, its head too."""
    half, eight, four = (plan_of(official, one) for one in (Precision.FP16, Precision.INT8_FP16, Precision.INT4_FP16))
    embeddings = 2 * 151936 * 4096
    assert eight.weights == pytest.approx(embeddings + (half.weights - embeddings) / 2, rel=0.01)
    matrices = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008) + 151936 * 4096
    assert eight.weights - four.weights == pytest.approx(matrices * (1 / 2 - 2 / 128), rel=0.01)
    assert four.kv_bytes == half.kv_bytes


def test_each_kind_needs_its_gpu(official: ModelConfig) -> None:
    t4, a100 = (Machine(gpu=gpu_named(name)) for name in ("T4", "A100-80GB"))
    assert "int4-fp16 needs sm80 and the T4 is sm75" in shortfalls(plan_of(official, Precision.INT4_FP16), t4)
    assert shortfalls(plan_of(official, Precision.FP8_FP16), a100)[0] == "fp8-fp16 needs sm89 and the A100-80GB is sm80"
    assert not any("needs sm" in one for one in shortfalls(plan_of(official, Precision.INT8_FP16), t4))
