"""The lint: exported graphs are clean, and every trap that is put into one is found and explained."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import OWN_VARIANTS
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.engines.build import Choices, build
from vlm_trt.engines.finding import Finding
from vlm_trt.engines.lint import lint_graph

Exported = Callable[..., Path]


def lint(
    path: Path,
    component: Component,
    precision: Precision,
    target: str,
    graph: Path | None = None,
    backend: str = "tensorrt-rtx",
) -> list[Finding]:
    manifest = Bundle.open(path).manifest
    entry = manifest.graph(component, precision)
    assert entry is not None
    where = path / entry.graph.path if graph is None else graph
    return list(lint_graph(where, component, precision, manifest.model, manifest.limits, target, backend))


@pytest.mark.parametrize("precision", FLOATS)
@pytest.mark.parametrize("variant", OWN_VARIANTS)
def test_exported_graphs_are_clean(variant: str, precision: Precision, exported: Exported) -> None:
    path = exported(variant, precision.value)
    for component in Bundle.open(path).manifest.model.components:
        for target in ("sm80", "sm86", "sm89", "sm120"):
            assert lint(path, component, precision, target) == []
        old = {finding.rule for finding in lint(path, component, precision, "sm75")}
        traps = {"fp16": set(), "bf16": {"capability"}, "fp32": {"fp32-product"}}[precision.value]
        assert old == (traps if component.has_weights else set())


def test_fp32_on_sm75_is_slow_in_tensorrt_and_refused_by_tensorrt_rtx(exported: Exported) -> None:
    path = exported("ntk-256", "fp32")
    (slow,) = lint(path, Component.DECODER, Precision.FP32, "sm75", backend="tensorrt")
    assert (slow.rule, slow.severity) == ("fp32-product", "warning")
    assert re.search(r"1[0-9] products of fp32 weights .* without tensor cores, many times slower", slow.sentence)
    (refused,) = lint(path, Component.DECODER, Precision.FP32, "sm75")
    assert refused.severity == "error"
    assert "has no fp32 products for sm75; export in fp16, or build for sm80 or newer" in refused.sentence


def test_heads_of_no_whole_eights_are_refused(exported: Exported) -> None:
    (found,) = lint(exported("smolvlm2"), Component.DECODER, Precision.FP32, "sm89")
    assert (found.rule, found.severity) == ("head-size", "error")
    assert "heads have 10 numbers" in found.sentence and found.sentence.endswith("run this model on ONNX Runtime")


def node(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(one for one in model.graph.node if one.op_type == kind)
    return found


def without_scale(model: onnx.ModelProto) -> None:
    attention = node(model, "Attention")
    kept = [attribute for attribute in attention.attribute if attribute.name != "scale"]
    del attention.attribute[:]
    attention.attribute.extend(kept)


def with_scale_one(model: onnx.ModelProto) -> None:
    next(attribute for attribute in node(model, "Attention").attribute if attribute.name == "scale").f = 1.0


def dequantized_to_fp32(model: onnx.ModelProto) -> None:
    """An INT8 weight with an fp32 scale enters its product as fp32."""
    weight = helper.make_tensor("w", TensorProto.INT8, [4, 4], np.zeros((4, 4), np.int8))
    model.graph.initializer.extend([weight, numpy_helper.from_array(np.ones(4, np.float32), "s")])
    model.graph.node.append(helper.make_node("DequantizeLinear", ["w", "s"], ["wide"], axis=1))
    model.graph.node.append(helper.make_node("MatMul", ["rope_cos", "wide"], ["x"], name="product"))


def cast_to_bf16(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["rope_cos"], ["x"], name="narrow", to=TensorProto.BFLOAT16))


def attend(model: onnx.ModelProto, *inputs: str) -> None:
    attention = node(model, "Attention")
    while len(attention.input) < 4:
        attention.input.append("")
    attention.input.extend(inputs)


def copied_cache(model: onnx.ModelProto) -> None:
    """The cache goes through a node before it is written."""
    scatter = node(model, "TensorScatter")
    model.graph.node.insert(0, helper.make_node("Identity", [scatter.input[0]], ["between"]))
    scatter.input[0] = "between"


def shorter_cache(model: onnx.ModelProto) -> None:
    next(v for v in model.graph.input if v.name.startswith("past")).type.tensor_type.shape.dim[2].dim_value = 64


def dynamic_cache(model: onnx.ModelProto) -> None:
    next(v for v in model.graph.input if v.name.startswith("past")).type.tensor_type.shape.dim[2].dim_param = "longest"


def frozen_batch(model: onnx.ModelProto) -> None:
    next(v for v in model.graph.input if v.name == "input_ids").type.tensor_type.shape.dim[0].dim_value = 1


def unused(model: onnx.ModelProto) -> None:
    for one in model.graph.node:
        for at, name in enumerate(one.input):
            if name == "rope_sin":
                one.input[at] = "rope_cos"


def foreign(kind: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(kind, ["input_ids"], ["x"], name="q", domain="com.microsoft"))

    return change


def copied_present(model: onnx.ModelProto) -> None:
    """The cache goes through a node after it was written."""
    scatter = node(model, "TensorScatter")
    present, scatter.output[0] = scatter.output[0], "between"
    model.graph.node.append(helper.make_node("Identity", ["between"], [present]))


def extra_output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch"]))


def transposed(model: onnx.ModelProto) -> None:
    weight = next(tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2)
    model.graph.node.append(helper.make_node("Transpose", [weight], ["x"]))


def quantized(kind: int, rows: int, block: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        weight = helper.make_tensor("w", kind, [rows, 4], np.zeros((rows, 4), np.uint8))
        scale = numpy_helper.from_array(np.ones((max(1, rows // block), 4), np.float16), "s")
        model.graph.initializer.extend([weight, scale])
        model.graph.node.append(helper.make_node("DequantizeLinear", ["w", "s"], ["x"], axis=0, block_size=block))

    return change


def missing_output(model: onnx.ModelProto) -> None:
    model.graph.output.pop(0)


@pytest.mark.parametrize(
    ("change", "target", "rule", "words"),
    [
        (without_scale, "sm89", "attention-no-scale", "has no scale, so TensorRT works it out .* as its attribute"),
        (with_scale_one, "sm89", "attention-scale", "has scale 1.0: TensorRT then copies the whole key cache .*, give"),
        (lambda m: attend(m, "", "", "attend_until"), "sm89", "attention-length", "parser drops: .* mask them instead"),
        (lambda m: attend(m, "a", "b"), "sm89", "attention-past", "does not parse; write them with TensorScatter"),
        (copied_cache, "sm89", "cache-not-in-place", "is TensorScatter of between; .* copies the cache at every step"),
        (copied_present, "sm89", "cache-not-in-place", "is Identity of between; only TensorScatter .* is updated in"),
        (
            shorter_cache,
            "sm89",
            "cache-length",
            r"\[batch, 4, 64, 32\], and a cache is .* 700, 32\]: .* would disagree",
        ),
        (dynamic_cache, "sm89", "cache-length", r"4, longest, 32\], .* only if its length is a number in the graph"),
        (frozen_batch, "sm89", "contract", r"input_ids is int64 \[1, seq\] and the contract says int64 \[batch, seq\]"),
        (unused, "sm89", "unused-input", "no node reads the input rope_sin: TensorRT drops it with a warning"),
        (foreign("MatMulNBits"), "sm89", "operator-domain", "of the domain com.microsoft, .* use DequantizeLinear and"),
        (foreign("GroupQueryAttention"), "sm89", "operator-domain", "does not parse; write the cache with TensorScat"),
        (
            foreign("Odd"),
            "sm89",
            "operator-domain",
            "Odd q is of the domain com.microsoft, .* use operators of ai.onnx",
        ),
        (transposed, "sm89", "transposed-weight", "is transposed in the graph, .* lay it out at export"),
        (missing_output, "sm89", "contract", "the output logits is missing; export the checkpoint again"),
        (extra_output, "sm89", "contract", "the output hidden is not in the contract, so nothing binds it; export"),
        (quantized(TensorProto.INT8, 64, 32), "sm89", "int8-blocks", "in blocks of 32, .*; scale it per channel"),
        (quantized(TensorProto.INT4, 48, 32), "sm89", "int4-blocks", "48 rows, which blocks of 32 do not divide"),
        (quantized(TensorProto.INT4, 64, 32), "sm75", "capability", "INT4 tensors .*, which need sm80 or newer"),
        (quantized(TensorProto.FLOAT8E4M3FN, 64, 64), "sm86", "capability", "FP8 tensors .*, which need sm89 or newer"),
        (cast_to_bf16, "sm75", "capability", r"it has bf16 tensors \(narrow, …\), which need sm80 or newer"),
        (dequantized_to_fp32, "sm75", "fp32-product", r"1 products of fp32 weights \(product, …\)"),
    ],
)
def test_a_trap_is_found_and_explained(
    change: Callable[[onnx.ModelProto], None], target: str, rule: str, words: str, exported: Exported, tmp_path: Path
) -> None:
    path = exported("ntk-256", "fp16")
    model = onnx.load(path / "graphs/fp16/decoder.onnx", load_external_data=False)
    change(model)
    (tmp_path / "decoder.onnx").write_bytes(model.SerializeToString())
    found = lint(path, Component.DECODER, Precision.FP16, target, tmp_path / "decoder.onnx")
    (finding,) = [one for one in found if one.rule == rule]
    assert re.search(words, finding.sentence), finding.sentence
    assert finding.where and finding.where in finding.sentence


def test_a_file_that_is_no_graph(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"garbage")
    with pytest.raises(UnsupportedError, match=r"x\.onnx does not parse: it is no ONNX file"):
        lint(exported("ntk-256", "fp16"), Component.DECODER, Precision.FP16, "sm89", tmp_path / "x.onnx")


def test_a_build_refuses_a_graph_with_a_trap_before_it_starts(exported: Exported) -> None:
    path = exported("ntk-256", "bf16")
    with pytest.raises(UnsupportedError, match=r"vision_encoder\.onnx for sm75: it has bf16 tensors .* need sm80"):
        build(path, Choices(backend="tensorrt-rtx", targets=("sm75",)))
    assert not list((path / "engines").glob("**/*.plan"))
