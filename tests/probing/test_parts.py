"""A graph in parts computes what it computes whole."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.errors import BundleError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.probing import in_parts
from vlm_trt.probing.in_parts import InParts
from vlm_trt.probing.parts import cut
from vlm_trt.probing.session import as_stored
from vlm_trt.runtime.load import open_engine
from vlm_trt.verification.asked import asked
from vlm_trt.verification.checks import features_of
from vlm_trt.verification.trial import Trial, vision_runs

GRAPH = """
<ir_version: 10, opset_import: ["": 24]>
agraph (float[n] x, float[n] y) => (float[n] out)
<float[3] a = {1, 2, 3}, float[3] b = {4, 5, 6}, float[3] c = {7, 8, 9},
 float[n] sum, float[n] both, float[n] other, float[n] joined>
{
    sum = Add(x, a)
    both = Mul(sum, y)
    other = Mul(sum, b)
    joined = Add(both, other)
    out = Mul(joined, c)
}
"""


def test_cuts_are_made_where_least_is_handed_on() -> None:
    parts = cut(ir.from_onnx_text(GRAPH), part_bytes=4 * 6)
    assert [part.inputs for part in parts] == [("x", "y"), ("joined",)]
    assert [part.outputs for part in parts] == [("joined",), ("out",)]
    assert [part.weight_values for part in parts] == [6, 3]


def test_a_part_of_one_node_where_its_weight_is_larger() -> None:
    assert [part.weight_values for part in cut(ir.from_onnx_text(GRAPH), part_bytes=4)] == [3, 3, 3]


def test_a_whole_graph_is_one_part() -> None:
    (part,) = cut(ir.from_onnx_text(GRAPH))
    assert (part.inputs, part.outputs) == (("x", "y"), ("out",))


TIED = """
<ir_version: 10, opset_import: ["": 24]>
agraph (int64[m] ids, float[m, 3] y) => (float[m, 2] out)
<float16[2, 3] table = {1, 2, 3, 4, 5, 6}, float[3] a = {1, 2, 3},
 float[2, 3] wide, float[m, 3] taken, float[m, 3] sum, float[m, 3] both>
{
    wide = Cast<to: int = 1>(table)
    taken = Gather(wide, ids)
    sum = Add(taken, a)
    both = Add(y, sum)
    out = Gemm<transB: int = 1>(both, wide)
}
"""


def test_a_weight_that_two_parts_use_in_another_type_is_not_handed_on() -> None:
    """As the table of a tied head is, in half precision: the one large weight of a graph."""
    first, *_, last = cut(ir.from_onnx_text(TIED), part_bytes=4 * 6)
    assert "wide" not in first.outputs and "wide" not in last.inputs
    for part in (first, last):
        nodes = [node.op_type for node in ir.from_proto(onnx.ModelProto.FromString(part.model)).graph]
        assert nodes[0] == "Cast" and part.weight_values == 6


def test_nodes_out_of_order_are_refused() -> None:
    model = ir.from_onnx_text(GRAPH)
    first = next(iter(model.graph))
    model.graph.insert_after(list(model.graph)[-1], first)
    with pytest.raises(BundleError, match="sum is used before it is made; export the checkpoint again"):
        cut(model, part_bytes=4)


@pytest.mark.parametrize(
    ("variant", "part_bytes", "precision", "grouped"),
    [
        ("ntk-256", 200_000, "fp32", False),
        ("ntk-256", 200_000, "fp32", True),
        ("ntk-256", 200_000, "fp16", False),
        ("ntk-256", 200_000, "bf16", False),
        ("paligemma2", 20_000, "fp32", False),
        ("paligemma2", 20_000, "fp16", False),
    ],
)
def test_parts_compute_what_the_whole_computes(
    variant: str,
    part_bytes: int,
    precision: str,
    grouped: bool,
    exported: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every run of a verification: prefills, decode steps and all slots together, on one cache, with attention in the
    form that large decoders have on a CPU and without."""
    bundle, chosen = Bundle.open(exported(variant, precision)), Precision(precision)
    manifest, kind = bundle.manifest, family(bundle.manifest.model.family)
    tokenizer = kind.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    passages, pixels = asked(kind, tokenizer, manifest.model, manifest.limits)
    told: list[str] = []
    monkeypatch.setattr(in_parts, "cut", lambda model: cut(model, part_bytes=part_bytes))
    monkeypatch.setattr(InParts, "groups", lambda _, graph: grouped and graph.stem == Component.DECODER)
    apart = InParts(chosen is not Precision.FP32, told.append)
    found = []
    for backend in (apart, as_stored(chosen)):
        trial = Trial(open_engine(bundle, chosen, backend), kind)
        features = features_of(list(trial.vision(pixels, vision_runs(manifest.limits.max_images, pixels))))
        found.append([row.logits for row in trial.decoder(passages, features)])
    assert any(word.startswith("decoder: part 12 of ") for word in told), told
    bound = 1e-5 if chosen is Precision.FP32 else 1e-2  # sums in another order, then rounded
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        assert np.abs(one - other).max() <= bound * np.abs(other).max()
    assert {component.value for component in PIPELINE} <= {word.partition(":")[0] for word in told}
