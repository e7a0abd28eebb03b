"""The table of embeddings in 8 bits: within half a step of what it was, as large as is said, and none for TensorRT."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.linears import HEAD, find_groups, find_linears, untied
from vlm_trt.calibration.rewrite import Plan, rewrite
from vlm_trt.calibration.tables import TABLE, find_table
from vlm_trt.calibration.weight_file import WeightFile

Exported = Callable[..., Path]
NAMES = ("ntk-256", "paligemma")  # with a head of its own, and with one that is the table


def decoder_of(bundle: Path, precision: str) -> Path:
    opened = Bundle.open(bundle)
    return bundle / opened.graph(Component.DECODER, Precision(precision)).graph.path


def rewritten(graph: Path, folder: Path) -> Path:
    """With its table alone quantized."""
    model = untied(ir.load(graph))
    with WeightFile(folder / "decoder.weights") as file:
        rewrite(model, Plan(find_groups(model, find_linears(model, Component.DECODER)), ()), file)
    (folder / "decoder.onnx").write_bytes(ir.serde.serialize_model(model).SerializeToString())
    return folder / "decoder.onnx"


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_within_half_a_step(name: str, exported: Exported, tmp_path: Path) -> None:
    graph = decoder_of(exported(name), "fp32")
    table = ir.load(graph).graph.initializers[TABLE].const_value
    assert table is not None
    made = ir.load(rewritten(graph, tmp_path)).graph.initializers
    integers, scales = (made[f"{TABLE}.{part}"].const_value for part in ("integers", "scale"))
    assert TABLE not in made and integers is not None and scales is not None
    apart = np.abs(integers.numpy().astype(np.float32) * scales.numpy() - table.numpy())
    assert (apart <= 0.5001 * scales.numpy()).all() and apart.max() > 0
    head = made.get(HEAD)  # stays as it is, one with the table or not
    assert head is not None and head.dtype is ir.DataType.FLOAT


def test_what_is_looked_up_is_the_row_that_was_stored(exported: Exported, tmp_path: Path) -> None:
    quantized = rewritten(decoder_of(exported("paligemma"), "fp32"), tmp_path)
    whole = onnx.load(quantized)
    looked = [node for node in whole.graph.node if any(TABLE in name for name in (*node.input, *node.output))][:4]
    assert [node.op_type for node in looked] == ["Gather", "Gather", "Cast", "Mul"]
    stored = {one.name: onnx.numpy_helper.to_array(one) for one in whole.graph.initializer}
    graph = onnx.helper.make_graph(
        looked,
        "lookup",
        [onnx.helper.make_tensor_value_info("input_ids", onnx.TensorProto.INT64, ["batch", "seq"])],
        [onnx.helper.make_tensor_value_info(looked[-1].output[0], onnx.TensorProto.FLOAT, None)],
        [one for one in whole.graph.initializer if one.name.startswith(TABLE)],
    )
    model = onnx.helper.make_model(graph, opset_imports=whole.opset_import, ir_version=whole.ir_version)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.array([[0, 7], [3, 3]])
    (rows,) = session.run(None, {"input_ids": ids})
    integers, scales = stored[f"{TABLE}.integers"], stored[f"{TABLE}.scale"]
    assert np.array_equal(rows, integers[ids].astype(np.float32) * scales[ids])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_as_large_as_is_said(name: str, exported: Exported, tmp_path: Path) -> None:
    bundle = exported(name)
    made = ir.load(rewritten(decoder_of(bundle, "fp32"), tmp_path)).graph.initializers
    tensors = [value.const_value for key, value in made.items() if key.startswith(TABLE)]
    decoder = Bundle.open(bundle).manifest.model.decoder
    assert sum(one.nbytes for one in tensors if one is not None) == decoder.table_bytes(Precision.INT4)
    assert (
        decoder.unread_bytes(Precision.INT4)
        == decoder.table_bytes(Precision.INT4)
        < decoder.table_bytes(Precision.FP32)
    )
    assert decoder.unread_bytes(Precision.FP32) == (0 if decoder.tied_head else decoder.table_bytes(Precision.FP32))
    assert decoder.table_bytes(Precision.INT4_FP16) == decoder.table_bytes(Precision.FP16)


def test_for_tensorrt_it_stays(exported: Exported) -> None:
    assert find_table(ir.load(decoder_of(exported("ntk-256", "fp16"), "fp16"))) is None
