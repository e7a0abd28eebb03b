"""The audit: what passes every sample and is not the model's is refused, with the tensor or the node in a sentence."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import helper

from tests.conftest import GOLDEN
from tests.tampering import Change, change_graph, change_weight, entry_of, manifest_of, vouch
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import BundleError, UsageError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.commands.verify import run
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.probing.audit import Audit
from vlm_trt.probing.widen import widen
from vlm_trt.verification.audit import audit

VISION, RESAMPLER, DECODER, _, SAMPLER = Component
FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16
CHECKPOINT = GOLDEN / "ntk-256" / "checkpoint"
Copied = Callable[..., Path]


def audited(path: Path, precision: Precision = FP16, checkpoint: Path = CHECKPOINT) -> Audit:
    return audit(Bundle.open(path), precision, Checkpoint(checkpoint))


@pytest.mark.parametrize("precision", [FP32, FP16, BF16])
def test_what_was_exported_passes(precision: Precision, exported: Copied) -> None:
    found = audited(exported("ntk-256", precision), precision)
    assert (found.failures, found.notes) == ((), ())
    assert (found.weights, found.constants) == (61, 225 if precision is FP32 else 259)
    size = {FP32: "3.97 MB", FP16: "1.99 MB", BF16: "1.99 MB"}[precision]
    assert found.summary == f"audit: 61 weights, {size}, bit for bit; {found.constants} constants"


def attribute(operator: str, name: str, value: Any, which: int = 0) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = [node for node in model.graph.node if node.op_type == operator][which]
        (old,) = [one for one in node.attribute if one.name == name]
        old.CopyFrom(helper.make_attribute(name, value))

    return change


def swap_layers(model: onnx.ModelProto) -> None:
    """Every node of one layer takes the other one's weights."""
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name.startswith(("layers.0.", "layers.1.")):
                node.input[at] = f"layers.{1 - int(name[7])}{name[8:]}"


def quick_gelu(model: onnx.ModelProto) -> None:
    """x · sigmoid(1.702 x), another activation that towers of this kind are trained with."""
    at, gelu = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "Gelu")
    (taken,), (made,) = gelu.input, gelu.output
    model.graph.initializer.append(helper.make_tensor("factor", onnx.TensorProto.FLOAT16, [], [1.702]))
    del model.graph.node[at]
    for number, node in enumerate(
        [
            helper.make_node("Mul", [taken, "factor"], ["quick.scaled"], name="quick_scaled"),
            helper.make_node("Sigmoid", ["quick.scaled"], ["quick.gate"], name="quick_gate"),
            helper.make_node("Mul", [taken, "quick.gate"], [made], name="quick_product"),
        ]
    ):
        model.graph.node.insert(at + number, node)


def extra_product(model: onnx.ModelProto) -> None:
    """The logits times 1.0001."""
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[0] = "before"
    model.graph.initializer.append(helper.make_tensor("nearly_one", onnx.TensorProto.FLOAT, [], [1.0001]))
    model.graph.node.append(helper.make_node("Mul", ["before", "nearly_one"], ["logits"], name="more"))


def other_bound(model: onnx.ModelProto) -> None:
    """Queries from other columns: the constant 0 that a slice begins at."""
    slicing = next(node for node in model.graph.node if node.op_type == "Slice" and node.name == "node_slice_5")
    model.graph.initializer.append(helper.make_tensor("begin", onnx.TensorProto.INT64, [1], [1]))
    slicing.input[1] = "begin"


def inside(model: onnx.ModelProto) -> None:
    """A weight moved into the graph, where no file's hash vouches for it alone."""
    tensor = next(one for one in model.graph.initializer if one.name == "final_norm.weight")
    tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, np.ones(128, np.float32)))


def elsewhere(model: onnx.ModelProto) -> None:
    """One norm takes another one's bytes."""
    one, other = (
        next(tensor for tensor in model.graph.initializer if tensor.name == name)
        for name in ("layers.0.mlp_norm.weight", "layers.1.mlp_norm.weight")
    )
    one.external_data[1].value = other.external_data[1].value


def unused(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("spare", onnx.TensorProto.FLOAT, [1], [1.0]))


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 23


def shorter_cache(model: onnx.ModelProto) -> None:
    model.graph.input[-1].type.tensor_type.shape.dim[2].dim_value = 500


def cast_twice(model: onnx.ModelProto) -> None:
    """The embeddings rounded on the way, by a cast that looks like one of an island."""
    at, node = next((i, one) for i, one in enumerate(model.graph.node) if one.name == "node__to_copy")
    model.graph.node.insert(at, helper.make_node("Cast", [node.input[0]], ["rough"], name="rough_round", to=16))
    node.input[0] = "rough"


@pytest.mark.parametrize(
    ("component", "change", "sentence"),
    [
        (
            DECODER, attribute("RMSNormalization", "epsilon", 1e-5, 1),
            r"RMSNormalization '\S+' of layers\.0\.mlp_norm has epsilon 9\.99999975e-06 instead of 9\.99999997e-07",
        ),
        (VISION, attribute("LayerNormalization", "epsilon", 1e-5), "LayerNormalization '\\S+' of pre_norm has epsilon"),
        (DECODER, attribute("Attention", "scale", 0.2), r"of layers\.0\.attention has scale 0\.2\d* instead of 0\.17"),
        (RESAMPLER, attribute("Attention", "scale", 0.2), "Attention '\\S+' has scale 0.2"),
        (VISION, attribute("Gelu", "approximate", "tanh"), r"Gelu .* of layers\.0\.mlp has \w+ 'tanh' instead of 'no"),
        (VISION, quick_gelu, "Mul 'quick_scaled' is no part of the model"),
        (DECODER, swap_layers, r"RMSNormalization .* takes 'layers\.1\.attention_norm\.weight' instead of 'layers\.0"),
        (DECODER, extra_product, "Mul 'more' is no part of the model"),
        (DECODER, other_bound, r"Slice .* of layers\.0\.attention takes the constant \[1\] instead of .* \[0\]"),
        (DECODER, inside, r"the weight final_norm\.weight does not lie in the file of weights"),
        (DECODER, elsewhere, r"the weight layers\.0\.mlp_norm\.weight is FLOAT \[128\] at byte \d+ of 'decoder\.w"),
        (DECODER, unused, "nothing takes the constant 'spare'"),
        (DECODER, other_opset, "its operator sets are {'': 23} instead of {'': 24}"),
        (DECODER, shorter_cache, r"its inputs have past_key_values\.1\.value FLOAT16 .*'500'.* instead of .*'700'"),
        (DECODER, cast_twice, "Cast 'rough_round' is no part of the model"),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else None,
)  # fmt: skip
def test_a_node_that_was_changed_is_named(
    component: Component, change: Callable[[onnx.ModelProto], None], sentence: str, copied: Copied
) -> None:
    path = copied("ntk-256", "fp16")
    change_graph(path, component, FP16, change)
    failures = audited(path).failures
    file = path / entry_of(path, component, FP16).graph.path
    assert re.match(f"audit: .*{sentence}", failures[0]), failures
    assert all(one.endswith(f"({file}); export it: vlm-trt export CHECKPOINT {path} --precision fp16 --force")
               for one in failures if "more nodes" not in one)  # fmt: skip


def test_each_change_has_its_sentence(copied: Copied) -> None:
    """Behind a change everything is another term; what is compared goes on as if it were not."""
    path = copied("ntk-256", "fp16")
    for which in (0, 1):
        change_graph(path, DECODER, FP16, attribute("Attention", "scale", 0.2, which))
    change_graph(path, DECODER, FP16, extra_product)
    parts = [re.search(r"of (layers\.\d)|'(more)'", one) for one in audited(path).failures]
    assert [part and (part[1] or part[2]) for part in parts] == ["layers.0", "layers.1", "more"]


def test_two_tensors_of_one_name_are_refused(copied: Copied) -> None:
    """ONNX Runtime takes the last one, others may take the first."""
    path = copied("ntk-256", "fp16")
    change_graph(path, DECODER, FP16, lambda model: model.graph.initializer.extend([model.graph.initializer[0]]))
    with pytest.raises(BundleError, match=r"decoder\.onnx holds two tensors of one name, sparse ones"):
        audited(path)


def with_island(path: Path, more: Callable[[ir.Model], None] = lambda _: None) -> None:
    """An MLP of the decoder in fp32, as `diagnose --mend` publishes it."""
    file = path / entry_of(path, DECODER, FP16).graph.path
    model = ir.load(file)
    nodes = [node for node in model.graph if "layers.1.mlp'" in node.metadata_props["pkg.torch.onnx.name_scopes"]]
    inner = [value.name for node in nodes if node.op_type == "MatMul" for value in node.outputs][:2]
    widen(model, [str(node.name) for node in nodes], [str(name) for name in inner])
    more(model)
    file.write_bytes(ir.to_proto(model).SerializeToString())
    vouch(path)


def test_islands_of_fp32_are_seen_and_pass(copied: Copied) -> None:
    path = copied("ntk-256", "fp16")
    with_island(path)
    found = audited(path)
    assert found.failures == () and re.match(r"audit: \d nodes of the decoder compute in fp32", found.notes[0])


def test_a_change_beside_an_island_is_refused(copied: Copied) -> None:
    def change(model: ir.Model) -> None:
        node = next(node for node in model.graph if node.op_type == "RMSNormalization")
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-5)

    path = copied("ntk-256", "fp16")
    with_island(path, change)
    (failure,) = audited(path).failures
    assert "has epsilon 9.99999975e-06 instead of 9.99999997e-07" in failure


def test_a_graph_of_another_torch_is_said_to_be_one(copied: Copied) -> None:
    path = copied("ntk-256", "fp16")
    change_graph(path, DECODER, FP16, lambda model: setattr(model, "producer_version", "2.5.0"))
    assert audited(path).failures == ()  # which traced the same
    change_graph(path, DECODER, FP16, attribute("Attention", "scale", 0.2))
    (failure,) = audited(path).failures
    assert re.search(
        r"decoder\.onnx was exported by vlm-trt \S+ and torch 2\.5\.0, and vlm-trt \S+ and torch 2\.\d+\S* trace "
        r"another graph, so it cannot be audited: Attention .* has scale 0\.2.*--force, or verify with those versions$",
        failure,
    )


def test_the_config_is_the_checkpoints_and_not_the_manifests(copied: Copied) -> None:
    path = copied("ntk-256", "fp16")
    manifest = manifest_of(path)
    decoder = manifest.model.decoder
    other = replace(manifest.model, decoder=replace(decoder, block=replace(decoder.block, norm_eps=1e-5)))
    (path / MANIFEST).write_text(replace(manifest, model=other).dumps())
    for which in range(5):
        change_graph(path, DECODER, FP16, attribute("RMSNormalization", "epsilon", 1e-5, which))
    assert len(audited(path).failures) == 5


def test_limits_beyond_the_model_are_refused(copied: Copied) -> None:
    path = copied("ntk-256", "fp16")
    manifest = manifest_of(path)
    (path / MANIFEST).write_text(replace(manifest, limits=replace(manifest.limits, max_seq_tokens=9)).dumps())
    with pytest.raises(UsageError, match="--max-seq-tokens 9 does not hold one picture"):
        audited(path)


def scaled(factor: float) -> Change:
    def change(values: NDArray[Any]) -> None:
        values[:] = (values.astype(np.float32) * factor).astype(values.dtype)

    return change


def test_a_failed_audit_is_a_failed_verification(copied: Copied, capsys: pytest.CaptureFixture[str]) -> None:
    """A matrix scaled by 1.01 passes the samples."""
    path = copied("ntk-256", "fp16")
    change_weight(path, DECODER, FP16, "layers.1.mlp.up.weight", scaled(1.01))
    with pytest.raises(VerificationError, match=r"Their files hold something else than an export writes; .* --force$"):
        run(path, None, (), "fp16", "cpu", None, None, as_json=False)
    printed = capsys.readouterr().out
    assert "audit: 61 weights, 1.99 MB, not as they should be; 259 constants" in printed
    assert "FAILED audit: layers.1.mlp.up.weight is not what transformer.h.1.mlp.w1.weight become" in printed
    verdict = Bundle.open(path).manifest.verification(FP16)
    assert verdict is not None and not verdict.passed
    failures = json.loads((path / verdict.report).read_text())["failures"]
    assert len(failures) == 1 and failures[0].startswith("audit: layers.1.mlp.up.weight")
