"""The inspection of built engines: real plans of good and bad graphs are told apart without a GPU."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.engines.builder import BuildOptions, build_engine
from vlm_trt.engines.inspect_plan import Expected, inspect_plan, programs_of_inspector
from vlm_trt.engines.kernel_program import read_programs
from vlm_trt.engines.profiles import profiles

Exported = Callable[..., Path]
VARIANT = "ntk-256"


def expected(path: Path, component: Component, precision: Precision, **limits: int) -> Expected:
    manifest = Bundle.open(path).manifest
    kept = replace(manifest.limits, **limits)
    return Expected(component, precision, manifest.model, kept, profiles(component, manifest.model, kept, precision))


def built(path: Path, wanted: Expected, plan: Path, change: Callable[[onnx.ModelProto], None] | None = None) -> Path:
    """The real engine of a graph, or of a changed copy of it, for sm89."""
    entry = Bundle.open(path).manifest.graph(wanted.component, wanted.precision)
    assert entry is not None
    graph = path / entry.graph.path
    if change is not None:
        model = onnx.load(graph, load_external_data=False)
        change(model)
        assert entry.weights is not None
        shutil.copy(path / entry.weights.path, plan.parent)
        graph = plan.with_suffix(".onnx")
        graph.write_bytes(model.SerializeToString())
    build_engine(graph, wanted.profiles, plan, BuildOptions("tensorrt-rtx", "sm89"))
    return plan


@pytest.fixture(scope="module")
def decoder(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """A good fp16 decoder, and what it was built to be."""
    path = exported(VARIANT, "fp16")
    wanted = expected(path, Component.DECODER, Precision.FP16)
    return built(path, wanted, tmp_path_factory.mktemp("decoder") / "decoder.plan"), wanted


def test_a_good_decoder_has_nothing_to_find(decoder: tuple[Path, Expected]) -> None:
    plan, wanted = decoder
    seen = inspect_plan(plan, wanted)
    assert seen.findings == ()
    assert (seen.source, seen.best_effort) == ("stored kernel program", True)
    assert seen.fused_attentions == {"decode": 2, "prefill": 2, "check": 2}
    assert 15 <= seen.kernels["decode"] <= 30  # of two layers: the measured 22 is of one version


def test_a_decode_step_reads_and_writes_the_cache_in_place(decoder: tuple[Path, Expected]) -> None:
    decode, *others = read_programs(decoder[0])
    assert [decode.profile, *(one.profile for one in others)] == [0, 1, 2]
    assert "logits" in decode.outputs and "input_ids" in decode.inputs
    writers = [kernel for kernel in decode.kernels if "present.1.key" in kernel.outputs]
    assert all("present.1.key" in kernel.inputs for kernel in writers) and len(writers) == 1
    (reader,) = [k for k in decode.kernels if "present.1.key" in k.inputs and "present.1.key" not in k.outputs]
    assert "mha" in reader.name
    assert decode.axes["present.1.key"][1:] == (4, 700, 32) and isinstance(decode.axes["present.1.key"][0], str)


def test_the_vision_engines_are_read_too(exported: Exported, tmp_path: Path) -> None:
    path = exported(VARIANT, "fp16")
    for component, attentions in ((Component.VISION_ENCODER, 2), (Component.RESAMPLER, 1)):
        wanted = expected(path, component, Precision.FP16)
        seen = inspect_plan(built(path, wanted, tmp_path / f"{component}.plan"), wanted)
        assert (seen.findings, seen.fused_attentions) == ((), {"pictures": attentions})


def scale_of_one(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Attention":
            next(attribute for attribute in node.attribute if attribute.name == "scale").f = 1.0


def test_the_copies_of_a_scale_of_one_are_seen(exported: Exported, tmp_path: Path) -> None:
    """The lint's rule attention-scale tells the truth: the step gains a pass over each key cache."""
    path = exported(VARIANT, "fp16")
    wanted = expected(path, Component.DECODER, Precision.FP16)
    seen = inspect_plan(built(path, wanted, tmp_path / "bad.plan", scale_of_one), wanted)
    found = [(finding.rule, finding.severity, finding.where) for finding in seen.findings]
    assert sorted(found) == [
        ("cache-copied", "error", "past_key_values.0.key"),
        ("cache-copied", "error", "past_key_values.1.key"),
        ("cache-not-aliased", "error", "present.0.key"),
        ("cache-not-aliased", "error", "present.1.key"),
    ]
    copied = next(finding.sentence for finding in seen.findings if finding.rule == "cache-copied")
    assert "of the profile decode reads past_key_values.0.key and writes a tensor of the whole cache's size" in copied
    aliased = next(finding.sentence for finding in seen.findings if finding.rule == "cache-not-aliased")
    assert "present.0.key is not the memory of past_key_values.0.key in the profile decode" in aliased


def before_the_cache(model: onnx.ModelProto) -> None:
    scatter = next(node for node in model.graph.node if node.op_type == "TensorScatter")
    model.graph.node.insert(0, helper.make_node("Neg", [scatter.input[0]], ["between"]))
    scatter.input[0] = "between"


def behind_the_cache(model: onnx.ModelProto) -> None:
    scatter = next(node for node in model.graph.node if node.op_type == "TensorScatter")
    present, scatter.output[0] = scatter.output[0], "between"
    for node in model.graph.node:
        for at, name in enumerate(node.input):
            if name == present:
                node.input[at] = "between"
    place = list(model.graph.node).index(scatter) + 1
    model.graph.node.insert(place, helper.make_node("Neg", ["between"], [present]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (before_the_cache, "The cache tensor must be a network input"),
        (behind_the_cache, "The output tensor must be a network output"),
    ],
)
def test_a_cache_that_is_not_direct_is_refused_by_the_builder(
    change: Callable[[onnx.ModelProto], None], words: str, exported: Exported, tmp_path: Path
) -> None:
    """The lint's rule cache-not-in-place says at once, and why, what the builder says late."""
    path = exported(VARIANT, "fp16")
    wanted = expected(path, Component.DECODER, Precision.FP16)
    with pytest.raises(UnsupportedError, match=words):
        built(path, wanted, tmp_path / "bad.plan", change)


def test_fp32_prefill_is_not_fused_and_decode_is(exported: Exported, tmp_path: Path) -> None:
    path = exported(VARIANT, "fp32")
    wanted = expected(path, Component.DECODER, Precision.FP32)
    seen = inspect_plan(built(path, wanted, tmp_path / "fp32.plan"), wanted)
    assert seen.fused_attentions == {"decode": 2, "prefill": 0, "check": 0}
    finding, checked = seen.findings
    assert (finding.rule, finding.severity) == (checked.rule, checked.severity) == ("attention-not-fused", "warning")
    assert "0 of the 2 attentions of the profile prefill are fused" in finding.sentence
    assert "fp32 has no fused kernel for more than one query, use fp16" in finding.sentence


def test_an_axis_that_got_fixed_is_found(exported: Exported, tmp_path: Path) -> None:
    """An engine for one sequence, held to three."""
    path = exported(VARIANT, "fp16")
    plan = built(path, expected(path, Component.DECODER, Precision.FP16, max_batch=1), tmp_path / "one.plan")
    seen = inspect_plan(plan, expected(path, Component.DECODER, Precision.FP16, max_batch=3))
    assert {finding.rule for finding in seen.findings} == {"axis-fixed"}
    ids = next(finding for finding in seen.findings if finding.where == "input_ids")
    assert "axis 0 (batch) of input_ids is fixed to 1 in the profile decode and has to take 1…3" in ids.sentence
    assert "past_key_values.1.value" in {finding.where for finding in seen.findings}


def test_a_layer_that_is_missing_is_found(decoder: tuple[Path, Expected]) -> None:
    plan, wanted = decoder
    model = replace(wanted.model, decoder=replace(wanted.model.decoder, layers=3))
    shapes = profiles(wanted.component, model, wanted.limits, wanted.precision)
    seen = inspect_plan(plan, replace(wanted, model=model, profiles=shapes))
    sentences = {finding.rule: finding.sentence for finding in seen.findings}
    assert set(sentences) == {"attention-not-fused", "cache-not-aliased", "input-unused"}
    assert "2 of the 3 attentions of the profile" in sentences["attention-not-fused"]
    assert "does not read past_key_values.2" in sentences["input-unused"]


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.2])
def test_a_plan_that_cannot_be_read_is_said_to_be_unknown(
    kept: float, decoder: tuple[Path, Expected], tmp_path: Path
) -> None:
    plan, wanted = decoder
    content = plan.read_bytes()
    (tmp_path / "cut.plan").write_bytes(content[: int(len(content) * kept)])
    seen = inspect_plan(tmp_path / "cut.plan", wanted)
    (finding,) = seen.findings
    assert (seen.source, finding.severity) == ("nothing readable", "warning")
    assert "so it is not known whether attention is fused" in finding.sentence
    assert "run vlm-trt verify on its GPU" in finding.sentence


def test_the_inspectors_report_is_read_per_profile() -> None:
    """In the documented form of the inspector's JSON; its own output needs a GPU."""

    def tensor(name: str, *dims: int) -> dict[str, Any]:
        return {"Name": name, "Dimensions": list(dims), "Format/Datatype": "Half"}

    layers = [
        {
            "Name": "__myl_Move_myl0_1",
            "LayerType": "kgen",
            "Inputs": [tensor("past_key_values.0.key", -1, 4, 700, 32)],
            "Outputs": [tensor("copy", -1, 4, 700, 32)],
        },
        {
            "Name": "_gemm_mha_v2_myl1_2",
            "LayerType": "kgen",
            "Inputs": [tensor("present.0.key [profile 1]", -1, 4, 700, 32)],
            "Outputs": [tensor("out [profile 1]", -1, 4, -1, 32)],
        },
    ]
    decode, prefill = programs_of_inspector(json.dumps({"Layers": layers, "Bindings": []}))
    assert (decode.profile, decode.kernels[0].inputs) == (0, ("past_key_values.0.key",))
    assert decode.axes["copy"] == ("varies", 4, 700, 32)
    assert (prefill.profile, prefill.kernels[0].inputs, prefill.kernels[0].outputs) == (1, ("present.0.key",), ("out",))


def test_what_is_asked_of_an_engine_exists_in_the_installed_module() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the names are checked against TensorRT-RTX's module")
    for name in ("get_aliased_input_tensor", "get_tensor_shape", "create_engine_inspector"):
        assert hasattr(trt.ICudaEngine, name), name
    assert "LayerInformationFormat" in trt.EngineInspector.get_engine_information.__doc__
    assert hasattr(trt.LayerInformationFormat, "JSON")
