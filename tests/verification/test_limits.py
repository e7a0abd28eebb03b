"""A graph that is right as far as short prompts go, and wrong where the bundle's limits end, is refused."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.verification.test_verify import damaged
from vlm_trt.bundle.component import Component
from vlm_trt.verification.verify import verify

Change = Callable[[onnx.ModelProto], None]


def constant(model: onnx.ModelProto, name: str, values: list[int]) -> str:
    model.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [len(values)], values))
    return name


def before(model: onnx.ModelProto, value: str, nodes: Callable[[str], list[onnx.NodeProto]]) -> None:
    """Everything that uses a graph input uses what the nodes make of it under the name `<value>.wrong`."""
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == value:
                node.input[at] = f"{value}.wrong"
    for node in reversed(nodes(value)):
        model.graph.node.insert(0, node)


def no_attention_past(position: int) -> Change:
    def change(model: onnx.ModelProto) -> None:
        last = constant(model, "last", [position])
        before(model, "attend_until", lambda name: [helper.make_node("Min", [name, last], [f"{name}.wrong"])])

    return change


def even_write_index(model: onnx.ModelProto) -> None:
    """Wrong after a prefill that ends at an odd position."""
    two = constant(model, "two", [2])
    before(
        model,
        "write_index",
        lambda name: [
            helper.make_node("Div", [name, two], ["half"]),
            helper.make_node("Mul", ["half", two], [f"{name}.wrong"]),
        ],
    )


def other_ids_without_logits(model: onnx.ModelProto) -> None:
    """Wrong where a run has logits of no position."""
    one = constant(model, "one", [1])
    before(
        model,
        "input_ids",
        lambda name: [
            helper.make_node("Shape", ["logits_index"], ["scored"]),
            helper.make_node("Min", ["scored", one], ["some"]),
            helper.make_node("Mul", [name, "some"], [f"{name}.wrong"]),
        ],
    )


def second_picture_ignored(model: onnx.ModelProto) -> None:
    """Rows beyond the first picture's are taken for text."""
    rows, none = constant(model, "rows", [256]), constant(model, "none", [-1])
    before(
        model,
        "image_rows",
        lambda name: [
            helper.make_node("Less", [name, rows], ["first"]),
            helper.make_node("Where", ["first", name, none], [f"{name}.wrong"]),
        ],
    )


def zero_row(output: str, row: int) -> Change:
    """One row of the leading axis of an output is zero, wherever there is one."""

    def change(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for at, name in enumerate(node.output):
                if name == output:
                    node.output[at] = "right"
        start, stop, axis = (
            constant(model, "start", [row]),
            constant(model, "stop", [row + 1]),
            constant(model, "axis", [0]),
        )
        first, end = constant(model, "first_row", [0]), constant(model, "end", [1 << 40])
        model.graph.node.extend(
            [
                helper.make_node("Slice", ["right", first, start, axis], ["front"]),
                helper.make_node("Slice", ["right", start, stop, axis], ["middle"]),
                helper.make_node("Slice", ["right", stop, end, axis], ["back"]),
                helper.make_node("Sub", ["middle", "middle"], ["zero"]),
                helper.make_node("Concat", ["front", "zero", "back"], [output], axis=0),
            ]
        )  # fmt: skip

    return change


@pytest.mark.parametrize(
    ("component", "change", "sentence"),
    [
        (Component.DECODER, no_attention_past(576), "prefill of to_the_last_position, run "),
        (Component.DECODER, no_attention_past(698), "decode_step of to_the_last_position, run 10: "),
        (Component.DECODER, even_write_index, "chunked_prefill of swapped_image, run 1: "),
        (Component.DECODER, other_ids_without_logits, "batch of slot 0, run 1: "),
        (Component.DECODER, second_picture_ignored, "prefill of most_pictures: "),
        (Component.DECODER, zero_row("logits", 1), "batch of slot 1, run 1: "),
        (Component.VISION_ENCODER, zero_row("vision_features", 2), "vision_encoder of picture 3 of 4: "),
        (Component.RESAMPLER, zero_row("image_features", 3), "resampler of picture 4 of 4: "),
    ],
    ids=[
        "past 576",
        "last position",
        "odd chunks",
        "no logits",
        "second picture",
        "middle slot",
        "third picture",
        "fourth picture",
    ],
)
def test_what_is_wrong_at_the_limits_alone_is_refused(
    component: Component, change: Change, sentence: str, exported: Callable[..., Path], tmp_path: Path
) -> None:
    path = damaged(exported("ntk-256"), tmp_path / "bundle", component, change)
    report = verify(path, precision="fp32", backend_name="cpu")
    assert not report.passed
    assert any(line.startswith(sentence) for line in report.failures), report.failures
