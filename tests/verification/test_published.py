"""Checkpoints that are published in 4 bits: exported as they are, shown equal to what they mean, built, and asked."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from tests.commands.runs import PICTURE, vlm_trt
from tests.conftest import GOLDEN, ROOT
from tests.exporter.packed_checkpoints import Layout, in_4_bits, of_others, of_qwen_vl
from tests.golden_families import write_checkpoint
from tests.tampering import change_weight, vouch
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.engines.build import Choices as BuildChoices
from vlm_trt.engines.build import build
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.export import Choices, export
from vlm_trt.verification import memory
from vlm_trt.verification.audit import audit
from vlm_trt.verification.verify import Report, verify

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16
DECODER = Component.DECODER
AWQ = Layout(method="awq")
ORDERED = Layout(symmetric=False, order=True, biases=True, lone_config=True)
SECOND = Layout(symmetric=False, second=True, order=True, own_orders=True)
# Family (a golden checkpoint) → of each the layout of its matrices.
MADE = {
    "qwen2_5_vl": AWQ,
    "llava15": AWQ,
    "qwen_vl": ORDERED,
    "qwen2_vl": SECOND,
    "demo": Layout(group=64),
    "groups_of_128": Layout(group=128),
    "bf16": Layout(symmetric=False, bf16=True),
}
SMALL = GOLDEN / "image-224" / "checkpoint"
DEMO = ROOT / "examples" / "demo_model" / "checkpoint"
OF_QWEN_VL = {"qwen_vl": SMALL, "groups_of_128": SMALL, "bf16": SMALL, "demo": DEMO}


@dataclass(frozen=True)
class Made:
    """A checkpoint in 4 bits, and what its matrices mean by the formulas."""

    folder: Path
    meant: dict[str, np.ndarray[Any, Any]]  # [outputs, inputs]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    root = tmp_path_factory.mktemp("packed")

    @cache
    def one(name: str) -> Made:
        if name in OF_QWEN_VL:
            return Made(root / name, in_4_bits(OF_QWEN_VL[name], root / name, MADE[name], of_qwen_vl))
        source = write_checkpoint(name, root / f"{name}-floats")
        return Made(root / name, in_4_bits(source, root / name, MADE[name], of_others))

    return one


@pytest.fixture(scope="module")
def bundle(made: Callable[[str], Made], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Precision], Path]:
    """A function: family, type → its bundle; nobody writes into it."""
    root = tmp_path_factory.mktemp("published")

    @cache
    def one(name: str, precision: Precision) -> Path:
        target = root / precision / name
        length = 512 if name in OF_QWEN_VL else 256
        done = export(made(name).folder, target, Choices(precision, max_seq_tokens=length, max_batch=2))
        assert done.precision is Precision.of("published-int4", precision)
        return target

    return one


Bundles = Callable[[str, Precision], Path]


def verified(path: Path) -> Report:
    report = verify(path, precision=Bundle.open(path).manifest.precisions()[0], backend_name="cpu")
    assert report.passed, report.failures
    assert any(note.endswith("constants") and "bit for bit" in note for note in report.notes)
    return report


@pytest.mark.parametrize("name", ["llava15", "qwen_vl"])
def test_graphs_in_fp32_are_what_the_numbers_mean(name: str, bundle: Bundles) -> None:
    """To the tolerance of fp32, with exact products; and nearly so as ONNX Runtime's kernels round."""
    report = verified(bundle(name, FP32))
    exact = [
        one for one in report.figures if one.sample.endswith("in exact products") or " exact products, " in one.sample
    ]
    assert len(exact) > 30 and max(one.relative for one in exact) < 1e-5
    others = [one for one in report.figures if "exact products" not in one.sample]
    assert len(others) == len(exact) and max(one.relative for one in others) > 1e-3


@pytest.mark.parametrize(("name", "precision"), [("qwen2_5_vl", FP16), ("qwen2_vl", FP16), ("bf16", BF16)])
def test_graphs_in_half_precision_are_what_the_numbers_mean(name: str, precision: Precision, bundle: Bundles) -> None:
    report = verified(bundle(name, precision))
    stored = [one for one in report.figures if "rounded as stored" in one.sample]
    assert len(stored) > 30 and (len(stored) == len(report.figures)) is (precision is BF16)
    assert max(one.relative for one in report.figures) < {FP16: 1e-2, BF16: 1e-1}[precision]


def test_large_graphs_are_shown_equal_in_parts(bundle: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "IN_PARTS_ABOVE_BYTES", 0)
    assert len(verified(bundle("llava15", FP32)).figures) > 20


# Our layers → the matrices of a checkpoint that they are made of.
OF_OTHERS = {
    "attention.qkv": ("q_proj", "k_proj", "v_proj"), "attention.output": ("o_proj",), "mlp.up": ("up_proj",),
    "mlp.gate": ("gate_proj",), "mlp.down": ("down_proj",),
}  # fmt: skip
OF_QWEN = {
    "attention.qkv": ("c_attn",), "attention.output": ("attn.c_proj",), "mlp.up": ("w1",), "mlp.gate": ("w2",),
    "mlp.down": ("mlp.c_proj",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "precision", "layers"),
    [("llava15", FP32, OF_OTHERS), ("qwen2_5_vl", FP16, OF_OTHERS), ("groups_of_128", FP16, OF_QWEN)],
)
def test_integers_scales_and_zero_points_are_the_checkpoints(
    name: str,
    precision: Precision,
    layers: Mapping[str, tuple[str, ...]],
    made: Callable[[str], Made],
    bundle: Bundles,
) -> None:
    """Every matrix of the graph, restored as ONNX says, has exactly the values that the formulas give."""
    model = ir.load(bundle(name, precision) / "graphs" / Precision.of("published-int4", precision) / "decoder.onnx")
    found, meant = restored(model), made(name).meant
    assert len(found) == 2 * len(layers)
    for layer in range(2):
        for ours, theirs in layers.items():
            matrices = [next(v for key, v in meant.items() if key.endswith(f".{end}.weight") and f".{layer}." in key)
                        for end in theirs]  # fmt: skip
            assert np.array_equal(found[f"layers.{layer}.{ours}"], np.concatenate(matrices).T), ours


def restored(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """Every layer's matrix [inputs, outputs] in fp64, by the layer: integers less zero points, times scales."""
    made = {}
    values = model.graph.initializers
    for name in [name for name in values if name.endswith(".integers")]:
        part = name.removesuffix(".integers")
        integers, scale = (tensor_of(values[f"{part}.{end}"]) for end in ("integers", "scale"))
        zeros = tensor_of(values[f"{part}.zeros"]) if f"{part}.zeros" in values else np.zeros_like(scale)
        assert f"{part}.order" not in values
        block = len(integers) // len(scale)
        matrix = (integers - np.repeat(zeros, block, axis=0)) * np.repeat(scale, block, axis=0)
        made[part.removesuffix(".parts.0")] = matrix
    return made


def tensor_of(value: ir.Value) -> np.ndarray[Any, Any]:
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy(), np.float64)


def test_inputs_out_of_order_are_looked_up_where_that_is_not_free(bundle: Bundles) -> None:
    """Of a layer: queries, keys and values together, output, and both halves of the MLP; what is behind them is not."""
    together = ir.load(bundle("qwen_vl", FP32) / "graphs/published-int4/decoder.onnx")
    orders = {name for name in together.graph.initializers if name.endswith(".order")}
    parts = ("attention.qkv", "attention.output", "mlp.up", "mlp.gate")
    assert orders == {f"layers.{layer}.{part}.parts.0.order" for layer in range(2) for part in parts}
    apart = ir.load(bundle("qwen2_vl", FP16) / "graphs/published-int4-fp16/decoder.onnx")
    own = {name for name in apart.graph.initializers if name.startswith("layers.0.") and name.endswith(".order")}
    assert own == {
        *(f"layers.0.attention.qkv.parts.{at}.order" for at in range(3)),
        *(f"layers.0.{part}.parts.0.order" for part in parts[1:]),
    }


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("layers.1.mlp.down.parts.0.integers", lambda data: np.bitwise_xor(data, 16, out=data, where=flagged(data, 40)),
         r"layers\.1\.mlp\.down_proj\.qweight become: 1 of 6,144 values differ, first at \[1, 17\]"),
        ("layers.0.attention.qkv.parts.0.scale", lambda data: np.multiply(data, 2, out=data, where=flagged(data, 3)),
         r"q_proj\.scales and .*k_proj\.scales and 1 more become: 1 of 384 values differ, first at \[0, 3\]"),
        ("layers.0.mlp.up.parts.0.zeros", lambda data: np.bitwise_xor(data, 1, out=data, where=flagged(data, 0)),
         r"up_proj\.qzeros become: 1 of 192 values differ, first at \[0, 0\]"),
    ],
    ids=["integer", "scale", "zero"],
)  # fmt: skip
def test_a_number_that_was_changed_is_named(
    name: str, change: Any, sentence: str, bundle: Bundles, made: Callable[[str], Made], tmp_path: Path
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(bundle("llava15", FP32), path)
    change_weight(path, DECODER, Precision.PUBLISHED_INT4, name, change)
    vouch(path)
    found = audit(Bundle.open(path), Precision.PUBLISHED_INT4, Checkpoint(made("llava15").folder))
    (failure,) = found.failures
    assert re.search(f"audit: {re.escape(name)} is not what .*{sentence}.*--precision fp32 --force", failure), failure


def flagged(data: np.ndarray[Any, Any], at: int) -> np.ndarray[Any, Any]:
    """True at one of the values alone."""
    return (np.arange(data.size) == at).reshape(data.shape)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "groups_of_128"])
def test_they_build_with_tensorrt(name: str, bundle: Bundles, tmp_path: Path) -> None:
    """Zero points and orders included; the matrices stay in 4 bits."""
    path = tmp_path / name
    shutil.copytree(bundle(name, FP16), path)
    built = build(path, BuildChoices(backend="tensorrt-rtx", targets=("sm80", "sm89")))
    for entry in built:
        assert entry.precision is Precision.PUBLISHED_INT4_FP16 and "-published-int4-fp16-" in entry.variant
        if entry.component is DECODER:
            graph = ir.load(path / "graphs/published-int4-fp16/decoder.onnx").graph
            tensors = [value.const_value for name, value in graph.initializers.items() if name.endswith(".integers")]
            assert entry.weights["int4"] == sum(one.nbytes for one in tensors if one is not None)
    shown = vlm_trt("inspect", path).output
    assert "published-int4-fp16" in shown and "built, not run" in shown


def test_the_demo_model_answers(bundle: Bundles, made: Callable[[str], Made], tmp_path: Path) -> None:
    """The commands, from the checkpoint to an answer."""
    checkpoint, path = made("demo").folder, tmp_path / "bundle"
    planned = vlm_trt("plan", checkpoint)
    assert planned.exit_code == 0, planned.output
    assert "published-int4-fp16" in planned.output and " fp16 " not in planned.output
    exported = vlm_trt("export", checkpoint, path, "--precision", "fp32", "--max-seq-tokens", 320, "--max-batch", 2)
    assert exported.exit_code == 0, exported.output
    assert "its matrices have 4 bits already and stay as they are: published-int4 graphs" in exported.stderr
    assert exported.stderr.endswith(f"Next: vlm-trt verify {path} --precision published-int4\n")
    proven = vlm_trt("verify", path)
    assert proven.exit_code == 0 and "verified: published-int4 on onnxruntime-cpu" in proven.output
    assert re.search(r"published-int4 +verified on onnxruntime-cpu", vlm_trt("inspect", path).output)
    asked = ("Describe the picture.", "--image", PICTURE, "--max-new-tokens", 8, "--greedy")
    answer = vlm_trt("generate", path, *asked)
    assert answer.exit_code == 0 and answer.stdout.strip(), answer.output
    again = vlm_trt("export", checkpoint, path, "--precision", "fp32")
    assert again.exit_code == 2 and "already has published-int4 graphs" in again.stderr
    for command, sentence in (
        (
            ("quantize", path, "--recipe", "int8-weight"),
            "holds 4-bit matrices of the checkpoint's own (published-int4)",
        ),
        (
            ("diagnose", path, "--precision", "published-int4"),
            "are compared with the model itself; run: vlm-trt verify",
        ),
        (("plan", checkpoint, "--precision", "int8"), "which nothing is quantized from; leave out --precision int8"),
        (
            ("plan", DEMO, "--precision", "published-int4"),
            "no 4-bit matrices of its",
        ),
        (("export", checkpoint, tmp_path / "other", "--lora", tmp_path), "which nothing can be merged into; give the"),
    ):
        refused = vlm_trt(*command)
        assert refused.exit_code in (2, 4) and sentence in refused.stderr, refused.output


def other_bias(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["transformer.h.0.mlp.w1.bias"][3] = 1


def no_scale(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["transformer.h.1.attn.c_proj.scales"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("quantized", "change", "kind", "sentence"),
    [
        (lambda name: of_qwen_vl(name) or name == "lm_head.weight", None, UnsupportedError,
         "lm_head.weight is stored in 4 bits; only matrices of the decoder's layers may be"),
        (lambda name: of_qwen_vl(name) or name.endswith("resblocks.0.mlp.c_fc.weight"), None, UnsupportedError,
         r"transformer.visual.transformer.resblocks.0.mlp.c_fc.weight is stored in 4 bits; only"),
        (of_qwen_vl, other_bias, CheckpointError, "config.json does not explain: transformer.h.0.mlp.w1.bias"),
        (of_qwen_vl, no_scale, CheckpointError, "transformer.h.1.attn.c_proj.scales are not all numbers above 0"),
        (of_qwen_vl, lambda config, tensors: config.pop("quantization_config"), CheckpointError,
         "has type torch.int32; weights must be F32, F16 or BF16"),
    ],
    ids=["head", "vision", "bias", "nan", "undescribed"],
)  # fmt: skip
def test_what_is_not_carried_out_is_a_sentence(
    quantized: Callable[[str], bool], change: Any, kind: type[VlmTrtError], sentence: str, tmp_path: Path
) -> None:
    arguments = (SMALL, tmp_path / "c", Layout(biases=True), quantized)
    in_4_bits(*arguments) if change is None else in_4_bits(*arguments, change)
    with pytest.raises(kind, match=sentence):
        export(tmp_path / "c", tmp_path / "b", Choices(FP16, max_seq_tokens=512))
    assert not (tmp_path / "b").exists()


def test_one_of_three_matrices_that_are_computed_together(tmp_path: Path) -> None:
    source = write_checkpoint("llava15", tmp_path / "floats")
    in_4_bits(source, tmp_path / "c", AWQ, lambda name: of_others(name) and "v_proj" not in name)
    with pytest.raises(
        UnsupportedError, match=r"q_proj.weight is stored in 4 bits and .*v_proj.weight, which is computed"
    ):
        export(tmp_path / "c", tmp_path / "b", Choices(FP16, max_seq_tokens=256))


def test_a_bundle_is_known_by_what_describes_its_matrices(bundle: Bundles, made: Callable[[str], Made]) -> None:
    files = Bundle.open(bundle("qwen_vl", FP32)).manifest.source.files
    assert files.keys() >= {"config.json", "quantize_config.json", "model.safetensors"}
    content = json.loads((made("qwen_vl").folder / "quantize_config.json").read_text())
    assert content["desc_act"] is True and "quant_method" not in content
