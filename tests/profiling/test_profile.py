"""The demo model measured for real: every stage seen, every token there, nothing changed by being looked at."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.host_engines import add_engines, host_backend
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UnsupportedError, UsageError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import no_bar
from vlm_trt.bundle.store import Bundle
from vlm_trt.profiling.document import document, lines, table_csv, trace
from vlm_trt.profiling.layers import _ANSWERS, _NEW_TOKENS, _stages, layers, summed_up
from vlm_trt.profiling.measure import measure, once
from vlm_trt.profiling.metrics import STAGES
from vlm_trt.profiling.pairing import Mine, compare_with, compare_with_torch, require_torch
from vlm_trt.profiling.probe import ceilings
from vlm_trt.profiling.profile import Profile, profile, swept
from vlm_trt.profiling.workload import Workload, requests
from vlm_trt.runtime.choice import Choice, choose
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.ort import CpuBackend


@pytest.fixture(scope="module")
def choice(demo_bundle: Callable[[str], Path]) -> Choice:
    return choose(demo_bundle("fp32"), backend="cpu")


@pytest.fixture(scope="module")
def model(choice: Choice) -> VisionLanguageModel:
    return choice.load()


@pytest.fixture(scope="module")
def found(choice: Choice, model: VisionLanguageModel) -> Profile:
    points = swept(Workload(new_tokens=6), {"batch": (1, 2), "images": (1, 2), "prompt_tokens": ()})
    return profile(choice, model, points, 3, 1, lambda _: None, no_bar)


@pytest.mark.parametrize("tokens", [150, 151, 200, 333])
def test_a_prompt_has_exactly_so_many_tokens(tokens: int, model: VisionLanguageModel) -> None:
    asked = requests(model, Workload(images=1, prompt_tokens=tokens, batch=3))
    assert [len(one.prompt.ids) for one in asked] == [tokens] * 3
    assert len({one.prompt.ids for one in asked}) == 3
    (span,) = asked[0].prompt.spans
    assert span.stop - span.start == model.engine.model.tile_tokens


@pytest.mark.parametrize(
    ("workload", "sentence"),
    [
        (Workload(batch=9), "a batch of 9 is more than this bundle's 4 sequences"),
        (Workload(prompt_tokens=20), "20 prompt tokens are fewer than the .* that 1 images and a question take"),
        (Workload(prompt_tokens=500, new_tokens=100), "500 prompt tokens and 100 new ones are more than the 512"),
        (Workload(images=30), "this workload does not fit the bundle: the prompt has"),
        (Workload(batch=0), "0 batch cannot be measured; give 1 or more"),
        (Workload(images=-1), "-1 images cannot be measured"),
    ],
)
def test_what_does_not_fit_is_refused(workload: Workload, sentence: str, model: VisionLanguageModel) -> None:
    with pytest.raises(UsageError, match=sentence):
        requests(model, workload)


def test_an_iteration_has_every_token_and_stage(model: VisionLanguageModel) -> None:
    asked = requests(model, Workload(images=2, new_tokens=5, batch=2))
    done = once(model, asked, 5)
    assert len(done.requests) == 2
    for one in done.requests:
        assert len(one.ids) == len(one.tokens) == 5 and list(one.tokens) == sorted(one.tokens)
        assert one.tokens[-1] <= done.seconds and all(span.start >= 0 for span in one.spans)
        assert {span.stage for span in one.spans} == set(STAGES)
        assert sum(span.stage == "decode_step" for span in one.spans) == 4
    # Shared by both, but for the first one's first, in the step that prefills the second.
    assert sum(span.stage == "decode_step" for span in done.spans) == 5
    assert once(model, asked, 5).requests[0].ids == done.requests[0].ids  # nothing of the first is used again


def test_measuring_changes_no_answer(model: VisionLanguageModel) -> None:
    (asked,) = requests(model, Workload(new_tokens=6))
    (answer,) = model.generate_batch([asked.conversation], Options(greedy=True, ignore_eos=True, max_new_tokens=6))
    assert once(model, [asked], 6).requests[0].ids == answer.ids


def test_warm_up_is_apart(model: VisionLanguageModel) -> None:
    steps: list[int] = []
    measured = measure(model, Workload(new_tokens=2), 3, 2, lambda: steps.append(1))
    assert len(measured.iterations) == 3 and len(measured.warmup_ms) == 2 and len(steps) == 5
    with pytest.raises(UsageError, match="0 iterations measure nothing"):
        measure(model, Workload(), 0, 1)


def test_the_profile_has_every_point(found: Profile) -> None:
    sizes = [(point.measured.workload.batch, point.measured.workload.images) for point in found.points]
    assert sizes == [(1, 1), (2, 1), (1, 2)]
    for point in found.points:
        assert set(point.roofline) == {"prefill", "decode_step", "sampling", "vision_encoder", "resampler"}
        assert all(gap.floor_ms > 0 and gap.measured_ms > 0 for gap in point.roofline.values())
    assert found.verified and found.load_ms > 0 and found.peak_rss_bytes > 50 << 20 and len(found.graphs) == 4


def test_layers_are_those_of_the_model(found: Profile) -> None:
    """Of graphs that ran: a greedy token is numpy's where the logits lie on the host."""
    by_stage = {stage: [one for one in found.layers if one.stage == stage] for stage in {o.stage for o in found.layers}}
    assert set(by_stage) == {"vision_encoder", "resampler", "prefill", "decode_step"}
    for own in by_stage.values():
        assert sum(one.share for one in own) == pytest.approx(1)
    decode = {(one.layer, one.part) for one in by_stage["decode_step"]}
    assert {(f"layer {at}", part) for at in range(4) for part in ("attention", "mlp", "norm")} <= decode
    assert not any(one.layer == "added by the backend" and one.share > 0.5 for one in found.layers)
    runs = {stage: {one.runs for one in own} for stage, own in by_stage.items()}
    once_each = {stage: {_ANSWERS} for stage in ("vision_encoder", "resampler", "prefill")}
    assert runs == {**once_each, "decode_step": {_ANSWERS * (_NEW_TOKENS - 2)}}
    assert all(one.low <= one.milliseconds <= one.high for one in found.layers)


def test_a_part_is_told_with_its_spread_in_all_runs() -> None:
    """The first run alone would name the mlp first. A node that one run lacks took no time there."""
    parts = {"a": ("layer 0", "attention"), "b": ("layer 0", "attention"), "c": ("layer 0", "mlp")}
    runs = [[("a", "MatMul", 1.0), ("c", "Mul", 9.0)]]
    runs += [[("a", "MatMul", 1.0), ("b", "Add", 3.0), ("c", "Mul", 2.0 + at / 10)] for at in range(4)]
    attention, mlp = summed_up("prefill", runs, parts)
    assert (attention.part, attention.operator, attention.milliseconds, attention.runs) == ("attention", "Add", 4, 5)
    assert (mlp.part, mlp.milliseconds) == ("mlp", pytest.approx(2.2))
    assert attention.low == pytest.approx(1 + 0.4 * 3) and attention.high == 4
    assert attention.share + mlp.share == pytest.approx(1) and mlp.low < 2.2 < mlp.high < 9


def test_a_prompt_of_several_runs_is_one_prefill() -> None:
    """Warm-up in two runs, then of each answer the prompt in two and the steps, of which the first is not counted."""
    events: list[dict[str, Any]] = []
    answer = ["chunk", "chunk", "first", *["step"] * (_NEW_TOKENS - 2)]
    for at, name in enumerate(["warm", "warm", *answer * _ANSWERS]):
        node = {"cat": "Node", "name": f"{name}_kernel_time", "ts": 10 * at, "dur": 1}
        events += [node, {"cat": "Session", "name": "model_run", "ts": 10 * at + 2, "dur": 1}]
    found = _stages(Component.DECODER, events)
    names = {stage: [[event["name"] for event in run] for run in runs] for stage, runs in found.items()}
    assert names["prefill"] == [["chunk_kernel_time"] * 2] * _ANSWERS
    assert names["decode_step"] == [["step_kernel_time"]] * (_ANSWERS * (_NEW_TOKENS - 2))
    seen = [{"cat": "Session", "name": "model_run", "ts": at, "dur": 1} for at in range(2 * (_ANSWERS + 1))]
    assert [len(runs) for runs in _stages(Component.RESAMPLER, seen).values()] == [2 * _ANSWERS]  # two runs an answer


def test_a_sweep_is_refused_before_it_begins(choice: Choice, model: VisionLanguageModel) -> None:
    said: list[str] = []

    def bar(label: str, total: int) -> AbstractContextManager[None]:
        said.append(label)
        return nullcontext()

    with pytest.raises(UsageError, match="a batch of 9 is more than"):
        profile(choice, model, [Workload(new_tokens=2), Workload(new_tokens=2, batch=9)], 1, 0, lambda _: None, bar)
    assert not said


def test_other_backends_time_no_nodes(choice: Choice) -> None:
    class Other(CpuBackend):
        pass

    assert layers(Choice(choice.bundle, Other(), choice.precision, 0), Workload()) == ()


def test_the_files_hold_what_was_measured(found: Profile) -> None:
    written = json.loads(json.dumps(document(found), allow_nan=False))
    assert [point["workload"]["batch"] for point in written["points"]] == [1, 2, 1]
    first = written["points"][0]
    assert first["metrics"]["time_to_first_token"]["count"] == 3 and first["iterations"] == 3
    assert len(first["decode_by_position"]) == 5 and first["timeline"]
    rows = table_csv(written).splitlines()
    assert rows[0].startswith("batch,images,prompt_tokens,new_tokens,kind,name,unit,avg,")
    assert any(row.startswith("2,1,,6,stage,decode_step,ms,") for row in rows)
    raw = [json.loads(line) for line in lines(found)]
    assert len(raw) == 3 * (1 + 2 + 1) and all(len(one["tokens_ms"]) == 6 for one in raw)
    events = trace(found)["traceEvents"]
    named = [one["args"]["name"] for one in events if one["ph"] == "M"]
    assert named == [point.measured.workload.label for point in found.points]
    complete = [one for one in events if one["ph"] == "X"]
    assert {one["name"] for one in complete} == set(STAGES) and all(one["dur"] >= 0 for one in complete)


def test_a_bundle_is_as_fast_as_itself(choice: Choice, model: VisionLanguageModel) -> None:
    found = compare_with(Mine(choice, model), choice, Workload(new_tokens=4), 4, None, no_bar)
    assert found.same_tokens == 1 and found.parted_at is None and found.pairs == 4
    assert {"vision_encoder", "decode_step", "time_to_first_token", "request_latency"} <= {
        o.stage for o in found.ratios
    }
    assert all(one.low <= one.ratio <= one.high for one in found.ratios)


def test_other_models_are_not_compared(
    choice: Choice, model: VisionLanguageModel, verified: Callable[..., Path]
) -> None:
    other = choose(verified("ntk-256"), backend="cpu")
    with pytest.raises(UsageError, match="was exported from another checkpoint than .*; compare bundles of the same"):
        compare_with(Mine(choice, model), other, Workload(new_tokens=2), 1, None, no_bar)


def test_the_model_itself_says_the_same(choice: Choice, model: VisionLanguageModel) -> None:
    found = compare_with_torch(Mine(choice, model), Workload(new_tokens=8), 2, no_bar)
    assert found.same_tokens == 1 and found.other == "torch modules, eager, fp32"
    assert {"preprocess", "vision_encoder", "resampler", "prefill", "decode_step"} <= {o.stage for o in found.ratios}


def test_a_baseline_that_cannot_run_is_refused(choice: Choice, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the torch baseline decodes one request at a time"):
        require_torch(choice, Workload(batch=2))
    manifest = choice.bundle.manifest
    moved = replace(manifest, source=replace(manifest.source, checkpoint="/gone"))
    with pytest.raises(UsageError, match="the checkpoint /gone is not there, so torch has nothing to run"):
        require_torch(replace(choice, bundle=Bundle(choice.bundle.path, moved)), Workload())
    monkeypatch.setattr("vlm_trt.profiling.pairing.find_spec", lambda _: None)
    with pytest.raises(UnsupportedError, match="torch is not installed; install the extra export, or profile without"):
        require_torch(choice, Workload())


def test_what_the_machine_can_do() -> None:
    found = ceilings(CpuBackend(), "float32", mib=64)
    assert 1e9 < found.bytes_per_second < 1e13 and 1e9 < found.operations_per_second < 1e14
    assert found.integer_operations_per_second is not None and found.integer_operations_per_second > 1e9


def test_an_engines_layers_are_those_of_the_model(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """Named as TensorRT names them; half a millisecond each, whatever they do. Nothing is captured meanwhile."""
    shutil.copytree(demo_bundle("fp32"), tmp_path / "bundle")
    add_engines(tmp_path / "bundle")
    choice = Choice(Bundle.open(tmp_path / "bundle"), host_backend(), Precision.FP32, 0)
    seen = layers(choice, Workload())
    by_stage = {stage: [one for one in seen if one.stage == stage] for stage in {one.stage for one in seen}}
    assert set(by_stage) == {"vision_encoder", "resampler", "prefill", "decode_step", "sampling"}
    graph = onnx.load(tmp_path / "bundle" / "graphs" / "fp32" / "decoder.onnx", load_external_data=False).graph
    assert sum(one.milliseconds for one in by_stage["decode_step"]) == pytest.approx(len(graph.node) / 2)
    runs = {stage: {one.runs for one in own} for stage, own in by_stage.items()}
    assert runs["prefill"] == runs["vision_encoder"] == {_ANSWERS} and runs["decode_step"] == {_ANSWERS * 7}
    assert {(f"layer {at}", "mlp") for at in range(4)} <= {(one.layer, one.part) for one in by_stage["prefill"]}
    assert not any(one.layer == "added by the backend" for one in seen)


def test_engines_have_no_floors(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """What measures the machine are graphs, which TensorRT does not run."""
    shutil.copytree(demo_bundle("fp32"), tmp_path / "bundle")
    add_engines(tmp_path / "bundle")
    choice = Choice(Bundle.open(tmp_path / "bundle"), host_backend(), Precision.FP32, 0)
    found = profile(choice, choice.load(), [Workload(new_tokens=3)], 1, 0, lambda _: None, no_bar, per_layer=False)
    assert found.ceilings is None and not found.points[0].roofline and not found.verified
    assert document(found)["ceilings"] is None
