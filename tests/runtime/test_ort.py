"""ONNX Runtime on bound memory: nothing is copied, and a refusal names what is wrong."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.runtime.sequences import chunked, engine_of
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import IncompatibleError, VlmTrtError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.qwen_vl.positions import position_table
from vlm_trt.runtime.backend import Binding, bind_host
from vlm_trt.runtime.backends import choose_backend
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import PREPACK_BELOW_BYTES, CpuBackend, OrtSession, multiply_8_bits_exactly
from vlm_trt.runtime.ort_cuda import can_start
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime
from vlm_trt.runtime.step_inputs import Step

COPY_WARNING = "in-place optimization not activated"


def run_steps(engine: Engine) -> None:
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    for slot in (0, 2):
        engine.prefill(slot, np.arange(40), np.full(40, -1), None, table)
    for _ in range(3):
        engine.decode([Step(0, 5, table), Step(2, 6, table)])


def test_the_cache_is_written_in_place(exported: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime warns when TensorScatter copies its input; with past and present at one address it never does."""
    engine = engine_of(exported("ntk-256"))
    run_steps(engine)
    assert COPY_WARNING not in capfd.readouterr().err
    # The same graph bound to two places does warn: so the absence above says something.
    past, present = engine.cache.bindings(0, 1)
    elsewhere = np.zeros_like(engine.cache._layers[0][0].read()[:1])
    present["present.0.key"] = bind_host(elsewhere, "float32")
    run_steps_one_slot(engine)
    assert COPY_WARNING in capfd.readouterr().err
    assert past["past_key_values.0.key"] != present["present.0.key"]


def run_steps_one_slot(engine: Engine) -> None:
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    engine.decode([Step(0, 5, table)])


def test_a_step_touches_only_the_positions_it_writes(exported: Callable[..., Path]) -> None:
    engine = engine_of(exported("ntk-256"))
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    marker = np.float32(7)
    arrays = [buffer.read() for layer in engine.cache._layers for buffer in layer]
    for array in arrays:
        array[:, :, 100:] = marker
    engine.prefill(1, np.arange(40), np.full(40, -1), None, table)
    engine.decode([Step(1, 5, table)])
    for array in arrays:
        assert (array[:, :, 100:] == marker).all()
        assert (array[0, :, :100] == 0).all() and (array[2, :, :100] == 0).all()
        assert (array[1, :, :41] != 0).any(axis=(0, 2)).all()
        assert (array[1, :, 41:100] == 0).all()


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    ("name", "precision"),
    [("ntk-256", "fp32"), ("ntk-256", "fp16"), ("moondream2", "fp32"), ("paligemma2", "fp32"), ("smolvlm2", "fp32")],
)
def test_a_chunk_without_logits_is_the_same_chunk(
    name: str, precision: str, grouped: bool, exported: Callable[..., Path]
) -> None:
    """With a head that adds a bias, hidden states that are given too, capped logits, a head tied to the embeddings."""
    bundle, backend = Bundle.open(exported(name, precision)), CpuBackend(threads=1, grouped=grouped)
    engine = open_engine(bundle, Precision(precision), backend)
    for expected, found in zip(chunked(engine, last=True), chunked(engine, last=False), strict=True):
        assert np.array_equal(expected, found)


def test_only_what_changed_is_bound_again(exported: Callable[..., Path]) -> None:
    engine = engine_of(exported("ntk-256"))
    table = position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    engine.prefill(0, np.arange(40), np.full(40, -1), None, table)
    engine.decode([Step(0, 5, table)])
    session = engine.sessions[Component.DECODER]
    assert isinstance(session, OrtSession)
    bound: list[str] = []

    class Recording(dict[str, Binding]):
        def __setitem__(self, name: str, binding: Binding) -> None:
            bound.append(name)
            super().__setitem__(name, binding)

    session._bound = Recording(session._bound)
    engine.decode([Step(0, 5, table)])
    assert bound == []
    engine.prefill(1, np.arange(2), np.full(2, -1), None, table)
    assert "input_ids" in bound and "past_key_values.0.key" in bound


def test_a_shape_the_graph_refuses_is_named(exported: Callable[..., Path]) -> None:
    engine = engine_of(exported("ntk-256"))
    with pytest.raises(VlmTrtError, match="ONNX Runtime failed at running vision_encoder.onnx.*pixel_values"):
        engine.encode_vision([{"pixel_values": np.zeros((1, 3, 100, 100), dtype=np.float32)}])


def test_large_weights_are_mapped_and_not_read(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading leaves the weight file mapped into the process."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/maps, which only Linux has")
    monkeypatch.setattr("vlm_trt.runtime.ort.PREPACK_BELOW_BYTES", 0)
    bundle = exported("ntk-256")
    engine = engine_of(bundle)
    maps = Path("/proc/self/maps").read_text()
    assert os.path.realpath(bundle / "graphs" / "fp32" / "decoder.weights") in maps
    assert engine.precision is Precision.FP32


def test_only_small_weights_are_prepacked_unless_asked(tmp_path: Path) -> None:
    for name, size in (("small", PREPACK_BELOW_BYTES - 1), ("large", PREPACK_BELOW_BYTES)):
        with (tmp_path / f"{name}.weights").open("wb") as file:
            file.truncate(size)
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    assert [CpuBackend().prepacks(graph) for graph in (small, large)] == [True, False]
    assert [CpuBackend(prepack=False).prepacks(graph) for graph in (small, large)] == [False, False]
    assert [CpuBackend(prepack=True).prepacks(graph) for graph in (small, large)] == [True, True]


def test_quantized_weights_are_prepacked_however_large(tmp_path: Path) -> None:
    """Without, their kernels restore whole matrices in every run."""
    for precision in ("fp16", "int8-weight", "int4-fp16"):
        (tmp_path / precision).mkdir()
        with (tmp_path / precision / "decoder.weights").open("wb") as file:
            file.truncate(PREPACK_BELOW_BYTES)
    graphs = [tmp_path / precision / "decoder.onnx" for precision in ("fp16", "int8-weight", "int4-fp16")]
    assert [CpuBackend().prepacks(graph) for graph in graphs] == [False, True, True]
    assert not CpuBackend(prepack=False).prepacks(graphs[1])


@pytest.mark.parametrize("rows", [1, 4, 64])  # one, a batch, a prompt: other kernels
def test_sums_of_products_of_8_bits_are_not_cut_off(rows: int, tmp_path: Path) -> None:
    """All that is said holds for the largest integers, too: 256 × 127 × 127, which 16 bits do not hold."""
    inputs, outputs, scale = 256, 64, np.float32(0.5)
    constants = {
        "weight": np.full((inputs, outputs), 127, np.int8),
        "scales": np.full(outputs, scale),
        "weight.zero_points": np.zeros(outputs, np.int8),
        "scale": scale,
        "zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["activation"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "weight.zero_points"], ["matrix"], axis=1),
        helper.make_node("MatMul", ["activation", "matrix"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [rows, k]) for n, k in (("x", inputs), ("y", outputs))]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "product", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "x.onnx")
    backend = CpuBackend()
    x = backend.upload(np.full((rows, inputs), 127 * scale, np.float32), "float32")
    y = backend.upload(np.zeros((rows, outputs), np.float32), "float32")
    backend.open(tmp_path / "x.onnx").run({"x": x.rows(0, rows)}, {"y": y.rows(0, rows)})
    assert np.array_equal(y.array, np.full((rows, outputs), inputs * 127 * 127 * scale * scale))


def test_a_scale_per_output_is_not_repeated_every_32_inputs(tmp_path: Path) -> None:
    """Nor are inputs lost where no block divides their number."""
    inputs, outputs, random = 200, 64, np.random.default_rng(0)
    weight = random.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    scales = random.uniform(0.5, 2, outputs).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["weight", "scales"], ["matrix"], axis=1),
        helper.make_node("MatMul", ["x", "matrix"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, k]) for n, k in (("x", inputs), ("y", outputs))]
    constants = [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(scales, "scales")]
    graph, path = helper.make_graph(nodes, "product", ends[:1], ends[1:], constants), tmp_path / "x.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    options = CpuBackend().options(path)
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (node,) = onnx.load(tmp_path / "optimized.onnx").graph.node
    said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    assert (node.op_type, said["bits"], said["block_size"]) == ("MatMulNBits", 8, 128)
    x = random.standard_normal((2, inputs)).astype(np.float32)
    (found,) = session.run(None, {"x": x})
    expected = x @ (weight * scales)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("instructions", "asked"),
    [
        ("x86_64 avx avx2 fma", True),
        ("x86_64 avx avx2 avx512f avx512_4vnniw", True),  # something else of that name
        ("x86_64 avx2 avx512f avx512_vnni", False),
        ("x86_64 avx2 avx_vnni", False),
        ("aarch64 asimd i8mm", True),  # means nothing there
    ],
)
def test_exactness_is_asked_for_where_it_is_lacking(
    instructions: str, asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With VNNI sums are exact by themselves, and the setting would halve the speed."""
    monkeypatch.setattr("vlm_trt.runtime.processor.processor", lambda: instructions)
    options = onnxruntime.SessionOptions()
    multiply_8_bits_exactly(options)
    if asked:
        assert options.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError):
            options.get_session_config_entry("session.x64quantprecision")


def test_no_cuda_is_said() -> None:
    if can_start():
        pytest.skip("a CUDA device is here, so its absence cannot be tested")
    with pytest.raises(IncompatibleError, match="put the one for GPUs in its place|CUDA does not start here"):
        choose_backend("cuda")


def test_the_cpu_cannot_run_bf16() -> None:
    assert Precision.BF16 not in CpuBackend.precisions
