"""Quantized graphs compute what their integers say, on ONNX Runtime's integer kernels."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.linears import Fold, find_groups, find_linears, matrix_columns
from vlm_trt.calibration.recipe import Kind
from vlm_trt.calibration.rewrite import Activation, LayerError, Plan, Treatment, rewrite, treatment
from vlm_trt.calibration.rounding import by_output
from vlm_trt.calibration.tables import TABLE
from vlm_trt.calibration.weight_file import WeightFile
from vlm_trt.exporter.references import require_references
from vlm_trt.runtime.ort import CpuBackend

Exported = Callable[..., Path]


def graph_of(exported: Exported, component: Component, precision: str = "fp32") -> Path:
    bundle = Bundle.open(exported("ntk-256", precision))
    return bundle.path / bundle.graph(component, Precision(precision)).graph.path


def treatments(graph: Path, component: Component, kind: Kind) -> tuple[Treatment, ...]:
    found = (treatment(one, kind, 64) for one in find_linears(ir.load(graph), component))
    return tuple(one for one in found if one is not None)


def rewritten(graph: Path, plan: Plan, folder: Path) -> tuple[Path, tuple[LayerError, ...]]:
    model, target = ir.load(graph), folder / graph.name
    with WeightFile(target.with_suffix(".weights")) as file:
        errors = rewrite(model, plan, file)
    target.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    require_references(target, target.with_suffix(".weights"))
    onnx.checker.check_model(str(target), full_check=True)
    return target, errors


def plan_of(graph: Path, component: Component, kind: Kind, limit: float | None = None) -> Plan:
    groups = find_groups(ir.load(graph), find_linears(ir.load(graph), component))
    known = {}
    if limit is not None:
        known = {
            one.source: Activation(np.ones((1, n), np.float32), np.ones(n, np.float32), limit)
            for one in groups
            for n in [one.linears[0].inputs]
        }
    return Plan(groups, treatments(graph, component, kind), {}, known)


def run(graph: Path, **inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(graph), CpuBackend().options(graph), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, inputs)[0]
    return found


def fused(graph: Path, folder: Path) -> Counter[str]:
    """Operators after ONNX Runtime's own optimizations."""
    options = CpuBackend().options(graph)
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node
    return Counter(node.op_type for node in nodes)


@pytest.mark.parametrize("kind", [Kind.INT8_WEIGHT, Kind.INT4, Kind.INT8])
@pytest.mark.parametrize("component", PIPELINE)
def test_every_product_becomes_one_integer_kernel(
    component: Component, kind: Kind, exported: Exported, tmp_path: Path
) -> None:
    graph = graph_of(exported, component)
    plan = plan_of(graph, component, kind, limit=6.0 if kind is Kind.INT8 else None)
    found = fused(rewritten(graph, plan, tmp_path)[0], tmp_path)
    kernel = "MatMulIntegerToFloat" if kind is Kind.INT8 else "MatMulNBits"
    assert found[kernel] == len(plan.treatments) and found["DequantizeLinear"] == found["MatMul"] == found["Gemm"] == 0


def test_the_graph_computes_with_the_integers_it_holds(exported: Exported, tmp_path: Path) -> None:
    """The resampler of two: a graph whose weights are the restored ones gives the same."""
    graph = graph_of(exported, Component.RESAMPLER)
    plan = plan_of(graph, Component.RESAMPLER, Kind.INT8_WEIGHT)
    quantized, _ = rewritten(graph, plan, tmp_path)
    model = ir.load(graph)
    for one in plan.treatments:
        value = model.graph.initializers[one.linear.weight]
        assert value.const_value is not None
        (matrix,) = [matrix for _, matrix in matrix_columns(value.const_value, one.linear)]
        value.const_value = ir.tensor(by_output(matrix).floats(), name=value.name)
    restored = tmp_path / "restored.onnx"
    ir.save(model, restored, external_data="restored.data")
    width = int(model.graph.inputs[0].shape[2])  # type: ignore[index, arg-type]
    patches = int(model.graph.inputs[0].shape[1])  # type: ignore[index, arg-type]
    features = np.random.default_rng(0).standard_normal((2, patches, width)).astype(np.float32)
    one, other = run(quantized, vision_features=features), run(restored, vision_features=features)
    difference = float(np.abs(one - other).max() / np.abs(other).max())
    assert difference < 5e-2  # ONNX Runtime's kernel rounds activations to 8 bits by blocks of its own
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.9995


@pytest.mark.parametrize("component", PIPELINE)
def test_half_precision_graphs_are_balanced_in_the_same_places(component: Component, exported: Exported) -> None:
    """There a Cast lies between a norm and its products."""
    folds = []
    for precision in ("fp32", "fp16", "bf16"):
        model = ir.load(graph_of(exported, component, precision))
        folds.append([group.fold for group in find_groups(model, find_linears(model, component))])
    assert folds[0] == folds[1] == folds[2]


@pytest.mark.parametrize("component", [Component.VISION_ENCODER, Component.DECODER])
def test_norms_and_gated_products_can_give_their_range_away(component: Component, exported: Exported) -> None:
    graph = graph_of(exported, component)
    groups = find_groups(ir.load(graph), find_linears(ir.load(graph), component))
    folds = {linear.name.rpartition(".")[2]: group.fold for group in groups for linear in group.linears}
    assert folds["output"] is None
    assert isinstance(folds["qkv"], Fold) and folds["qkv"].weight.endswith("attention_norm.weight")
    assert isinstance(folds["up"], Fold) and folds["up"].weight.endswith("mlp_norm.weight")
    if component is Component.DECODER:
        assert isinstance(folds["down"], Fold) and folds["down"].weight.endswith("mlp.up.weight")
        assert isinstance(folds["lm_head"], Fold)
    else:
        assert folds["down"] is None  # a GELU lies between


def test_an_activation_that_others_read_is_not_balanced(exported: Exported) -> None:
    graph = graph_of(exported, Component.RESAMPLER)
    groups = find_groups(ir.load(graph), find_linears(ir.load(graph), Component.RESAMPLER))
    folds = {linear.name: group.fold for group in groups for linear in group.linears}
    assert folds["resampler.value"] is None and folds["resampler.projection"] is not None


def test_balancing_changes_nothing_but_the_rounding(exported: Exported, tmp_path: Path) -> None:
    """Factors of any size: what the norms lose, the products have."""
    graph = graph_of(exported, Component.VISION_ENCODER)
    plain = plan_of(graph, Component.VISION_ENCODER, Kind.INT8_WEIGHT)
    random = np.random.default_rng(2)
    factors = {
        group.source: random.uniform(0.25, 4, group.linears[0].inputs).astype(np.float32)
        for group in plain.groups
        if group.fold is not None
    }
    (tmp_path / "plain").mkdir()
    (tmp_path / "balanced").mkdir()
    unbalanced, _ = rewritten(graph, plain, tmp_path / "plain")
    balanced, _ = rewritten(graph, replace(plain, factors=factors), tmp_path / "balanced")
    side = int(ir.load(graph).graph.inputs[0].shape[2])  # type: ignore[index, arg-type]
    pixels = random.standard_normal((1, 3, side, side)).astype(np.float32)
    right = run(graph, pixel_values=pixels)
    for other in (unbalanced, balanced):
        assert np.corrcoef(right.ravel(), run(other, pixel_values=pixels).ravel())[0, 1] > 0.997


@pytest.mark.parametrize("component", PIPELINE)
def test_what_stays_in_float_has_its_side_of_the_balance(
    component: Component, exported: Exported, tmp_path: Path
) -> None:
    """Balanced, and nothing quantized: the weights of every product and of what it follows differ, the function not."""
    graph = graph_of(exported, component)
    plan, random = plan_of(graph, component, Kind.INT8_WEIGHT), np.random.default_rng(5)
    factors = {
        group.source: random.uniform(0.5, 2, group.linears[0].inputs).astype(np.float32)
        for group in plan.groups
        if group.fold is not None
    }
    target, errors = rewritten(graph, replace(plan, treatments=(), factors=factors), tmp_path)
    assert factors and errors == ()
    weights = [ir.load(path).graph.initializers for path in (graph, target)]
    changed = {
        name for name, value in weights[0].items()
        if name != TABLE and (value.const_value.numpy() != weights[1][name].const_value.numpy()).any()  # type: ignore[union-attr]
    }  # fmt: skip
    for group in plan.groups:
        if group.fold is not None:
            assert {group.fold.weight, *(linear.weight for linear in group.linears)} <= changed
    value = ir.load(graph).graph.inputs[0]
    assert value.name is not None and value.shape is not None
    shape = [axis if isinstance(axis, int) else 1 for axis in value.shape]
    if component is not Component.DECODER:
        given = {value.name: random.standard_normal(shape).astype(np.float32)}
        np.testing.assert_allclose(run(target, **given), run(graph, **given), rtol=1e-3, atol=1e-4)


def test_fp16_graphs_keep_fp16_scales(exported: Exported, tmp_path: Path) -> None:
    graph = graph_of(exported, Component.DECODER, "fp16")
    target, _ = rewritten(graph, plan_of(graph, Component.DECODER, Kind.INT8, limit=6.0), tmp_path)
    scales = [
        tensor for tensor in onnx.load(target, load_external_data=False).graph.initializer
        if tensor.name.endswith(".scale")
    ]  # fmt: skip
    assert scales and {tensor.data_type for tensor in scales} == {onnx.TensorProto.FLOAT16}


def test_errors_name_every_layer_and_what_it_takes(exported: Exported, tmp_path: Path) -> None:
    graph = graph_of(exported, Component.DECODER)
    (tmp_path / "8").mkdir()
    (tmp_path / "4").mkdir()
    _, eight = rewritten(graph, plan_of(graph, Component.DECODER, Kind.INT8_WEIGHT), tmp_path / "8")
    _, four = rewritten(graph, plan_of(graph, Component.DECODER, Kind.INT4), tmp_path / "4")
    assert len(eight) == len(four) > 4 and {one.layer for one in eight} == {one.layer for one in four}
    for one, other in zip(eight, four, strict=True):
        assert 0 < one.error < 0.03 and one.quantized_bytes < one.float_bytes / 3
        if other.kind is Kind.INT4:
            assert 0.03 < other.error < 0.4 and other.quantized_bytes < one.quantized_bytes
