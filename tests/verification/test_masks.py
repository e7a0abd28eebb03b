"""A graph that attends to other positions than the model, or takes features in another order, is refused."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.verification.test_limits import Change, before, constant
from tests.verification.test_verify import damaged
from vlm_trt.bundle.component import Component
from vlm_trt.verification.verify import verify


def causal(model: onnx.ModelProto) -> None:
    """No position sees one behind it, as where the prefix of a prefix-LM was lost."""
    axis = constant(model, "axis", [1])
    zero = helper.make_tensor("scalar_axis", TensorProto.INT64, [], [1])
    model.graph.initializer.append(zero)
    before(
        model,
        "attend_until",
        lambda name: [
            helper.make_node("Equal", [name, name], ["same"]),
            helper.make_node("Cast", ["same"], ["ones"], to=TensorProto.INT64),
            helper.make_node("CumSum", ["ones", "scalar_axis"], ["counted"], exclusive=1),
            helper.make_node("Unsqueeze", ["write_index", axis], ["first"]),
            helper.make_node("Add", ["first", "counted"], ["own"]),
            helper.make_node("Min", [name, "own"], [f"{name}.wrong"]),
        ],
    )


def no_window(model: onnx.ModelProto) -> None:
    before(model, "attend_from", lambda name: [helper.make_node("Sub", [name, name], [f"{name}.wrong"])])


def window_on_the_other_layers(model: onnx.ModelProto) -> None:
    """The masks of the first two layers change places."""
    first, second = [
        node for node in model.graph.node if node.op_type == "Where" and node.output[0] in _before_softmax(model)
    ][:2]
    first.input[0], second.input[0] = second.input[0], first.input[0]


def _before_softmax(model: onnx.ModelProto) -> set[str]:
    return {node.input[0] for node in model.graph.node if node.op_type == "Softmax"}


def features_backwards(model: onnx.ModelProto) -> None:
    """The last row of the first picture stands first."""
    last, none, zero = constant(model, "last", [15]), constant(model, "none", [-1]), constant(model, "zero", [0])
    before(
        model,
        "image_rows",
        lambda name: [
            helper.make_node("Less", [name, zero], ["text"]),
            helper.make_node("Sub", [last, name], ["turned"]),
            helper.make_node("Where", ["text", none, "turned"], [f"{name}.wrong"]),
        ],
    )


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("paligemma", causal, "prefill of one_image: "),
        ("paligemma2", causal, "prefill of one_image: "),
        ("paligemma2", no_window, "decode_step of one_image, run 1: "),
        ("paligemma2", window_on_the_other_layers, "decode_step of one_image, run 1: "),
        ("llava15", features_backwards, "prefill of one_image: "),
        ("paligemma", features_backwards, "prefill of one_image: "),
    ],
)
def test_a_graph_with_another_mask_is_refused(
    name: str, change: Change, sentence: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    path = damaged(exported(name), tmp_path / "bundle", Component.DECODER, change)
    report = verify(path, precision="fp32", backend_name="cpu")
    assert not report.passed
    assert any(line.startswith(sentence) for line in report.failures), report.failures
