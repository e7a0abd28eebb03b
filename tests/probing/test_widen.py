"""Half precision on the CPU, rounded as it is stored."""

from collections.abc import Collection

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from vlm_trt.probing.session import as_bytes
from vlm_trt.probing.widen import round_as_stored, widen

Floats = np.ndarray
SHAPE = ir.Shape([2, 3])


def chain(dtype: ir.DataType = ir.DataType.FLOAT16) -> ir.Model:
    """(x·y)·z in half precision; all of it named."""
    inputs = [ir.Value(name=name, shape=SHAPE, type=ir.TensorType(dtype)) for name in "xyz"]
    first = ir.node("Mul", inputs[:2], name="first")
    second = ir.node("Mul", [first.outputs[0], inputs[2]], name="second")
    out = ir.node("Cast", [second.outputs[0]], {"to": ir.DataType.FLOAT}, name="out")
    for node, name, kind in ((first, "xy", dtype), (second, "xyz", dtype), (out, "result", ir.DataType.FLOAT)):
        node.outputs[0].name, node.outputs[0].shape = name, SHAPE
        node.outputs[0].type = ir.TensorType(kind)
    graph = ir.Graph(inputs, out.outputs, nodes=[first, second, out], opset_imports={"": 24}, name="chain")
    return ir.Model(graph, ir_version=11)


def run(model: ir.Model, *values: float) -> float:
    """The result where every element of an input is that value."""
    session = onnxruntime.InferenceSession(as_bytes(model))
    feeds = {name: np.full(SHAPE.numpy(), value, np.float16) for name, value in zip("xyz", values, strict=True)}
    return float(session.run(None, feeds)[0][0, 0])


def test_a_value_beyond_fp16_is_infinite() -> None:
    """As on a GPU; ONNX Runtime by itself computes on."""
    assert run(chain(), 300, 300, 0.001) == pytest.approx(90, rel=1e-2)
    model = chain()
    round_as_stored(model)
    assert run(model, 300, 300, 0.001) == np.inf


@pytest.mark.parametrize("seed", range(5))
def test_every_value_is_rounded(seed: int) -> None:
    x, y, z = np.random.default_rng(seed).normal(size=3).astype(np.float16)
    model = chain()
    round_as_stored(model)
    assert run(model, x, y, z) == float((x * y) * z)  # numpy rounds each of its products


def test_bf16_runs() -> None:
    model = chain(ir.DataType.BFLOAT16)
    model.graph.inputs[2].name = "unused"
    casts = []
    for value in list(model.graph.inputs):
        wide = ir.Value(name=f"{value.name}32", shape=SHAPE, type=ir.TensorType(ir.DataType.FLOAT))
        cast = ir.node("Cast", [wide], {"to": ir.DataType.BFLOAT16}, name=f"cast_{value.name}")
        cast.outputs[0].name, cast.outputs[0].type = f"{value.name}16", value.type
        value.replace_all_uses_with(cast.outputs[0])
        casts.append((wide, cast))
    model.graph.inputs.clear()
    model.graph.inputs.extend(wide for wide, _ in casts)
    model.graph.insert_before(model.graph[0], [cast for _, cast in casts])
    round_as_stored(model)
    session = onnxruntime.InferenceSession(as_bytes(model))
    values = [1.2345, 2.3456, 3.4567]
    feeds = {
        wide.name: np.full(SHAPE.numpy(), value, np.float32) for (wide, _), value in zip(casts, values, strict=True)
    }
    x, y, z = (ml_dtypes.bfloat16(value) for value in values)
    assert float(session.run(None, feeds)[0][0, 0]) == float((x * y) * z)


@pytest.mark.parametrize(
    ("nodes", "unrounded", "result"),
    [
        ((), (), 90),  # ONNX Runtime's own way
        (("first", "second"), ("xy",), 90),
        (("first", "second"), (), np.inf),
    ],
)
def test_an_island_passes_what_it_may(nodes: Collection[str], unrounded: Collection[str], result: float) -> None:
    model = chain()
    widen(model, nodes, unrounded)
    assert run(model, 300, 300, 0.001) == pytest.approx(result, rel=1e-2)


def test_names_stay_and_the_contract_too() -> None:
    model = chain()
    round_as_stored(model)
    made = {value.name: value.dtype for node in model.graph for value in node.outputs}
    assert made["xy"] is made["xyz"] is ir.DataType.FLOAT16 and made["xy.unrounded"] is ir.DataType.FLOAT
    assert [(value.name, value.dtype) for value in model.graph.outputs] == [("result", ir.DataType.FLOAT)]
    with pytest.raises(AssertionError, match="result has the type of the contract"):
        half = chain()
        half.graph.outputs[0] = half.graph.outputs[0]
        half.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)
        made_by = half.graph.outputs[0].producer()
        assert made_by is not None
        made_by.op_type = "Identity"
        widen(half, ["out"], ["result"])
