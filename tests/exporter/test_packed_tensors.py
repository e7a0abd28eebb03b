"""4-bit matrices: what GPTQ's and AWQ's own packages read, bit for bit; what is damaged or of another layout, a
sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import ROOT
from tests.exporter.packed_checkpoints import Layout, quantize
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import CheckpointError, UnsupportedError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.packed_weights import GraphWeights, PackedWeight, graph_weights, packed_values
from vlm_trt.families.weights import Layout as WeightLayout
from vlm_trt.families.weights import Weight

GOLDEN = ROOT / "tests" / "golden" / "packed" / "packed.safetensors"
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
# Case of the golden file → what config.json says of such matrices.
CASES: dict[str, dict[str, Any]] = {
    "gptq_sym_32": GPTQ | {"sym": True},
    "gptq_asym_32": GPTQ,
    "gptq_asym_all": GPTQ | {"group_size": -1, "checkpoint_format": "gptq"},
    "gptq_asym_32_order": GPTQ | {"desc_act": True},
    "gptq_v2_asym_32_order": GPTQ | {"desc_act": True, "checkpoint_format": "gptq_v2"},
    "awq_32": AWQ,
    "awq_128": AWQ | {"group_size": 128, "modules_to_not_convert": ["visual"]},
}
MATRIX = "layers.0.mlp.up.weight"


def checkpoint(folder: Path, config: object, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    """One of those tensors, called after a matrix X."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    save_file({f"X.{end}": value for end, value in tensors.items()}, folder / "model.safetensors")
    return Checkpoint(folder)


def golden(case: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Its tensors, and the floats [outputs, inputs] that the packages make of them."""
    tensors = load_file(GOLDEN)
    own = {name.rpartition(".")[2]: value for name, value in tensors.items() if name.rpartition(".")[0] == case}
    return own, own.pop("floats")


def planned(found: Checkpoint, precision: Precision = Precision.FP32) -> GraphWeights:
    outputs, inputs = found.shape("X.weight")
    weight = Weight(Component.DECODER, MATRIX, (inputs, outputs), WeightLayout.TRANSPOSE, ("X.weight",))
    return graph_weights([weight], Component.DECODER, found, precision)


def meant(found: Checkpoint) -> np.ndarray[Any, Any]:
    """[outputs, inputs] of what a graph is given, as ONNX defines DequantizeLinear, its inputs back in their places."""
    values = {one.layout: one for one in planned(found).weights}
    assert found.packed is not None and all(isinstance(one, PackedWeight) for one in values.values())
    raw = {layout: packed_values(one, found.packed).numpy() for layout, one in values.items()}  # type: ignore[arg-type]
    outputs, inputs = found.shape("X.weight")
    integers, scales = halves(raw[WeightLayout.INTEGERS]).reshape(inputs, outputs), raw[WeightLayout.SCALES]
    zeros = (
        halves(raw[WeightLayout.ZEROS]).reshape(scales.shape) if WeightLayout.ZEROS in raw else np.zeros_like(scales)
    )
    block = inputs // len(scales)
    rows = (integers - np.repeat(zeros, block, axis=0)).astype(np.float32) * np.repeat(scales, block, axis=0)
    back = np.empty_like(rows)
    back[raw.get(WeightLayout.ORDER, np.arange(inputs))] = rows
    return back.T


def halves(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """4-bit integers in two's complement, two to a byte, the first in the low half."""
    both = np.stack((data & 15, data >> 4), axis=-1).reshape(-1).astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8)


@pytest.mark.parametrize("case", CASES)
def test_matrices_mean_what_the_packages_make_of_them(case: str, tmp_path: Path) -> None:
    tensors, floats = golden(case)
    found = checkpoint(tmp_path, CASES[case], tensors)
    assert torch.equal(found.read("X.weight"), floats)
    assert np.array_equal(meant(found), floats.numpy())


@pytest.mark.parametrize("group", [16, 32, 48, 128, 256, -1])
@pytest.mark.parametrize(
    "layout",
    [
        Layout(), Layout(symmetric=False), Layout(symmetric=False, second=True, order=True), Layout(order=True),
        Layout(method="awq"),
    ],
    ids=["sym", "asym", "v2-order", "order", "awq"],
)  # fmt: skip
def test_every_size_of_group(group: int, layout: Layout, tmp_path: Path) -> None:
    layout = Layout(**{**vars(layout), "group": group})
    weight = np.random.default_rng(5).normal(size=(24, 768)).astype(np.float32)
    made = quantize(weight, layout, seed=7)
    found = checkpoint(tmp_path, layout.config, dict(made.stored))
    assert np.array_equal(meant(found), made.floats.astype(np.float32))
    assert np.array_equal(found.read("X.weight").numpy(), made.floats.astype(np.float32))
    (layer,) = planned(found).packed
    assert layer.parts[0].block == {16: 16, 32: 32, 48: 16, 128: 128, 256: 128, -1: 128}[group]
    assert layer.parts[0].has_zeros is not (layout.method == "gptq" and layout.symmetric)
    assert layer.parts[0].has_order is (layout.order and group != -1)


def test_scales_and_zero_points_are_the_stored_ones(tmp_path: Path) -> None:
    tensors, _ = golden("gptq_asym_32")
    found = checkpoint(tmp_path, CASES["gptq_asym_32"], tensors)
    assert found.packed is not None
    assert torch.equal(found.packed.scales("X.weight"), tensors["scales"])
    stored = tensors["qzeros"].numpy().view(np.uint32)
    each = [(stored[:, at // 8] >> np.uint32(4 * (at % 8))) & 15 for at in range(32)]
    assert np.array_equal(found.packed.zeros("X.weight").numpy(), np.stack(each, axis=1) + 1)


def test_other_files_and_other_names(tmp_path: Path) -> None:
    """A `.bin` file, and names of a layout that is renamed when it is opened."""
    tensors, floats = golden("gptq_v2_asym_32_order")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": CASES["gptq_v2_asym_32_order"]}))
    torch.save({f"model.Y.{end}": value for end, value in tensors.items()}, tmp_path / "pytorch_model.bin")
    found = Checkpoint(tmp_path, ((r"^model\.Y\.", "X."),))
    assert found.shapes() == {"X.weight": (32, 128)} and found.is_packed("X.weight")
    assert torch.equal(found.rows("X.weight", 3, 30), floats[3:30])
    assert np.array_equal(meant(found.reopened()), floats.numpy())


def test_a_type_that_does_not_hold_the_scales_is_refused(tmp_path: Path) -> None:
    from vlm_trt.exporter.weight_stream import stream_weights

    found = checkpoint(tmp_path, CASES["awq_32"], golden("awq_32")[0])
    own = planned(found, Precision.PUBLISHED_INT4_BF16)
    with pytest.raises(UnsupportedError, match=r"X.scales holds 0\.\d+, which bf16 would round, .* --precision fp32"):
        stream_weights(own.weights, None, found, Precision.PUBLISHED_INT4_BF16, tmp_path / "w")  # type: ignore[arg-type]
    tensors = golden("awq_32")[0]
    held = checkpoint(tmp_path / "bf16", AWQ, {**tensors, "scales": tensors["scales"].bfloat16()})
    own = planned(held, Precision.PUBLISHED_INT4_BF16)
    stream_weights(own.weights, None, held, Precision.PUBLISHED_INT4_BF16, tmp_path / "v")  # type: ignore[arg-type]


def without(end: str) -> Any:
    return lambda tensors: tensors.pop(end)


def changed(end: str, value: Any) -> Any:
    return lambda tensors: tensors.update({end: value(tensors[end])})


def twice(tensors: dict[str, torch.Tensor]) -> None:
    tensors["weight"] = torch.zeros(32, 128)


def negative(scales: torch.Tensor) -> torch.Tensor:
    return -scales


def one_fifteen(zeros: torch.Tensor) -> torch.Tensor:
    return zeros | 0xF0


def uneven(groups: torch.Tensor) -> torch.Tensor:
    return torch.where(groups == 3, 2, groups)


@pytest.mark.parametrize(
    ("case", "change", "kind", "sentence"),
    [
        ("gptq_sym_32", without("qzeros"), CheckpointError, "lacks X.qzeros; the download is incomplete"),
        ("gptq_asym_32_order", without("g_idx"), CheckpointError, "lacks X.g_idx; the download is incomplete"),
        ("gptq_sym_32", twice, CheckpointError, "holds X twice, as X.qweight and as X.weight"),
        ("gptq_sym_32", changed("scales", lambda it: it[:2]), CheckpointError,
         r"X.scales has shape \[2, 32\], and by quantization_config it has \[4, 32\]; use the config.json"),
        ("gptq_sym_32", changed("scales", negative), CheckpointError, "X.scales are not all numbers above 0"),
        ("gptq_sym_32", changed("g_idx", uneven), CheckpointError, "X.g_idx does not give each of 4 groups 32 inputs"),
        ("gptq_asym_32", changed("qzeros", one_fifteen), UnsupportedError,
         "X.qzeros holds a 15, which one reader of GPTQ's first format .* only gptq_v2 stores it clearly"),
        ("awq_32", changed("qweight", lambda it: it[:100]), UnsupportedError,
         "X has 100 inputs, which are no groups of 32"),
        ("awq_32", changed("qweight", lambda it: it.float()), CheckpointError, "X.qweight has type torch.float32"),
    ],
)  # fmt: skip
def test_matrices_that_are_damaged(
    case: str, change: Any, kind: type[VlmTrtError], sentence: str, tmp_path: Path
) -> None:
    tensors, _ = golden(case)
    change(tensors)
    with pytest.raises(kind, match=sentence):
        meant(checkpoint(tmp_path, CASES[case], tensors))


def test_integers_that_nobody_describes(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"X.g_idx has type torch.int32; weights must be F32, F16 or BF16, and"):
        checkpoint(tmp_path, None, {"g_idx": torch.zeros(4, dtype=torch.int32)})
    with pytest.raises(
        CheckpointError, match=r"says that matrices are stored by AWQ, and no tensor is called ….qweight"
    ):
        checkpoint(tmp_path, AWQ, {"weight": torch.zeros(4)})
