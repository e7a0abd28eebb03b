"""Attention as ONNX Runtime's own operator: the same numbers in the same places as with the graph's own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.families.family import family
from vlm_trt.families.messages import PromptShape
from vlm_trt.runtime import ort
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.grouped_attention import group_attention
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import GROUP_FROM_BYTES, CpuBackend
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime
from vlm_trt.runtime.step_inputs import Step
from vlm_trt.verification.verify import verify

# Log-n attention, few key heads with a prefix that attends both ways, few key heads, heads turned by three numbers.
ROUNDING = 2e-6  # sums over the filled part of the cache, and over all that a step looks at
GROUPED = ("ntk-256", "llava15", "paligemma", "qwen2_vl")


def engine_of(bundle: Path, *, grouped: bool) -> Engine:
    return open_engine(Bundle.open(bundle), Precision.FP32, CpuBackend(threads=1, grouped=grouped))


def operators(bundle: Path, folder: Path, *, grouped: bool) -> set[str]:
    """Those of the decoder that is loaded, as ONNX Runtime writes it down."""

    class Writing(CpuBackend):
        def options(self, graph: Path) -> onnxruntime.SessionOptions:
            options = super().options(graph)
            options.optimized_model_filepath = str(folder / f"{graph.stem}-{grouped}.onnx")
            return options

    open_engine(Bundle.open(bundle), Precision.FP32, Writing(grouped=grouped))
    return {node.op_type for node in ir.load(folder / f"decoder-{grouped}.onnx").graph}


def filled(engine: Engine) -> list[np.ndarray]:
    """Logits of prompts of different lengths, one of them in pieces, of three steps together, and the caches."""
    kind, decoder, limits = family(engine.model.family), engine.model.decoder, engine.limits
    random = np.random.default_rng(3)
    found, tables = [], []
    for slot, (length, prefix) in enumerate(((40, 0), (7, 7), (33, 0))):
        ids, none = random.integers(1, decoder.vocab_size, length), np.full(length, -1)
        shape = PromptShape(length, prefix if decoder.prefix_lm else 0)
        table = kind.position_table(decoder, shape, limits.max_seq_tokens)
        if slot == 2:
            engine.prefill(slot, ids[:20], none[:20], None, table)
            ids, none = ids[20:], none[20:]
        found.append(engine.prefill(slot, ids, none, None, table))
        tables.append(table)
    steps = ([Step(slot, 5 + token, table) for slot, table in enumerate(tables)] for token in range(3))
    found += [engine.decode(together) for together in steps]
    return [*found, *(buffer.read() for layer in engine.cache._layers for buffer in layer)]


@pytest.mark.parametrize("name", GROUPED)
def test_logits_and_caches_are_the_same(name: str, exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = exported(name)
    assert {"Attention", "TensorScatter"} <= operators(bundle, tmp_path, grouped=False)
    loaded = operators(bundle, tmp_path, grouped=True)
    assert "GroupQueryAttention" in loaded and not loaded & {"Attention", "TensorScatter"}
    apart, grouped = (engine_of(bundle, grouped=form) for form in (False, True))
    for expected, found in zip(filled(apart), filled(grouped), strict=True):
        assert np.abs(found - expected).max() <= ROUNDING * np.abs(expected).max()


@pytest.mark.parametrize(("name", "causal"), [("ntk-256", 1), ("qwen2_vl", 1), ("paligemma", 0)])
def test_the_kernel_is_told_that_nothing_is_shown_ahead(
    name: str, causal: int, exported: Callable[..., Path], tmp_path: Path
) -> None:
    """Where a prompt's beginning is, it would hide what has to be seen."""
    operators(exported(name), tmp_path, grouped=True)
    found = [node for node in ir.load(tmp_path / "decoder-True.onnx").graph if node.op_type == "GroupQueryAttention"]
    assert found and {node.attributes["causal"].as_int() for node in found} == {causal}


def test_what_cannot_be_put_so_stays(exported: Callable[..., Path]) -> None:
    """Capped scores, half precision, and heads that the kernel does not take."""
    for file in (
        exported("paligemma2") / "graphs" / "fp32" / "decoder.onnx",
        exported("ntk-256", "fp16") / "graphs" / "fp16" / "decoder.onnx",
        exported("smolvlm2") / "graphs" / "fp32" / "decoder.onnx",
    ):
        model = ir.load(file)
        before = ir.serde.serialize_model(model).SerializeToString()
        assert group_attention(model) == 0
        assert ir.serde.serialize_model(model).SerializeToString() == before


def test_only_a_step_s_own_positions_are_written(exported: Callable[..., Path]) -> None:
    engine = engine_of(exported("ntk-256"), grouped=True)
    table = family("qwen_vl").position_table(engine.model.decoder, PromptShape(1), engine.limits.max_seq_tokens)
    arrays = [buffer.read() for layer in engine.cache._layers for buffer in layer]
    for array in arrays:
        array[:, :, 100:] = 7
    engine.prefill(1, np.arange(40), np.full(40, -1), None, table)
    engine.decode([Step(1, 5, table)])
    for array in arrays:
        assert (array[:, :, 100:] == 7).all() and (array[0, :, :100] == 0).all()
        assert (array[1, :, :41] != 0).any(axis=(0, 2)).all() and (array[1, :, 41:100] == 0).all()


def test_the_report_says_which_form_was_verified(copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = copied()
    monkeypatch.setattr(ort, "GROUP_FROM_BYTES", 0)
    report = verify(bundle, precision="fp32", backend_name="cpu")
    assert report.passed
    assert any("attention as ONNX Runtime's GroupQueryAttention" in note for note in report.notes)


def test_small_decoders_are_loaded_as_they_are(tmp_path: Path) -> None:
    """Changing a graph takes as long as a small model takes to answer."""
    graph = tmp_path / "decoder.onnx"
    for size, expected in ((GROUP_FROM_BYTES - 1, False), (GROUP_FROM_BYTES, True)):
        with (tmp_path / "decoder.weights").open("wb") as file:
            file.truncate(size)
        assert CpuBackend().groups(graph) is expected
    assert not CpuBackend().groups(tmp_path / "vision_encoder.onnx")
