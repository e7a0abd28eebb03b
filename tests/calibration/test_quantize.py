"""The whole stage on the demo model: observed, rewritten, judged, published or refused."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

from tests.calibration.drawn import write_samples
from tests.conftest import ROOT
from tests.manifests import edit_manifest, set_field
from tests.once_per_run import alone, run_folder
from tests.runtime.sequences import chunked
from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.errors import BundleError, DataSetError, PromptError, StorageError, UsageError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.calibration import planning, state
from vlm_trt.calibration.linears import find_linears
from vlm_trt.calibration.observe import Watch
from vlm_trt.calibration.observers import Seen
from vlm_trt.calibration.prepare import Choices, prepare
from vlm_trt.calibration.quantize import judge_published, quantize
from vlm_trt.calibration.recipe import Kind, Observer, Recipe, read_recipe
from vlm_trt.engines.build import Choices as BuildChoices
from vlm_trt.engines.build import build
from vlm_trt.evaluation.dataset import DataSet, read_samples
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.options import Options
from vlm_trt.verification.verify import verify

Copy = Callable[..., Path]
SCENE = ROOT / "examples" / "demo_model" / "scene.png"


@pytest.fixture(scope="module")
def questions() -> DataSet:
    return synthetic(24, 7)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sixteen of the drawn samples, as a user's file."""
    return write_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def in_int8(
    tmp_path_factory: pytest.TempPathFactory, demo_bundle: Callable[[str], Path], questions: DataSet, samples: str
) -> Path:
    """Observed, rewritten and judged, once per run; not written into."""
    target = run_folder(tmp_path_factory) / "in-int8"
    with alone(target):
        if not target.exists():
            path = target.with_name("becomes-int8")
            shutil.copytree(demo_bundle("fp32"), path)
            quantize(path, Choices(read_recipe("int8"), samples=samples, max_drop=0.25), questions)
            path.rename(target)
    return target


@pytest.fixture
def bundle(demo_bundle: Callable[[str], Path], tmp_path: Path) -> Copy:
    def copy(precision: str = "fp32") -> Path:
        shutil.copytree(demo_bundle(precision), tmp_path / "bundle")
        return tmp_path / "bundle"

    return copy


@pytest.mark.parametrize("name", ["int8", "int8-weight", "int4", "fp8"])
def test_every_recipe_makes_graphs_that_answer(name: str, bundle: Copy, questions: DataSet, samples: str) -> None:
    path = bundle()
    report = quantize(path, Choices(read_recipe(name), samples=samples, max_drop=0.25), questions)
    assert report.verdict.passed and report.quantized_bytes < report.float_bytes / 2
    model = load(path, precision=name, backend="cpu")
    answer = model.generate("What color is the star?", images=[SCENE.read_bytes()], options=Options(greedy=True))
    assert answer.text
    for whole, found in zip(chunked(model.engine, last=True), chunked(model.engine, last=False), strict=True):
        assert np.array_equal(whole, found)
    opened = Bundle.open(path)
    verdict = opened.manifest.verification(Precision(name))
    assert verdict is not None and verdict.passed
    written = json.loads((path / verdict.report).read_text())
    assert len(written["layers"]) == 42 and written["judged"]["passed"]
    assert written["judged"]["questions"]["sha256"] == questions.sha256
    apart = written["judged"]["divergence"]
    assert 0 < apart["mean"] < 0.2 and apart["mean"] <= apart["largest"] and apart["answers"] == 16
    assert (written["samples"] is None) == (name == "int8-weight")
    picture = ElementTree.fromstring((path / verdict.report).with_suffix(".svg").read_text())
    assert len(picture.findall(".//{*}rect")) >= 42
    assert not list((path / state.FOLDER).glob("*")) and not list(path.glob(".*staging*"))


@pytest.mark.parametrize("name", ["int8-weight", "int4"])
def test_room_is_asked_for_what_is_written(
    name: str, bundle: Copy, samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for the float graphs once more: the disk that those of a large model lie on often has not that much left."""
    path, choices = bundle(), Choices(read_recipe(name), samples=samples)
    job = prepare(path, choices, None)
    report = quantize(path, choices, None)
    assert report.quantized_bytes <= job.most_bytes < 0.8 * job.float_bytes
    assert replace(job, choices=replace(choices, auto=True)).most_bytes == job.float_bytes
    monkeypatch.setattr("vlm_trt.bundle.staging._free_bytes", lambda _: job.most_bytes - 1)
    with pytest.raises(StorageError, match="GiB are free; make room or choose another disk"):
        quantize(path, replace(choices, force=True), None)
    monkeypatch.setattr("vlm_trt.bundle.staging._free_bytes", lambda _: job.most_bytes)
    quantize(path, replace(choices, force=True), None)


def test_the_same_samples_give_the_same_bytes(in_int8: Path, tmp_path: Path, questions: DataSet, samples: str) -> None:
    path = shutil.copytree(in_int8, tmp_path / "bundle")
    first = {entry.identity for entry in Bundle.open(path).manifest.graphs}
    quantize(path, Choices(read_recipe("int8"), samples=samples, max_drop=0.25, force=True), questions)
    assert {entry.identity for entry in Bundle.open(path).manifest.graphs} == first


def test_half_precision_graphs_become_engines(bundle: Copy, questions: DataSet, samples: str) -> None:
    """For every generation that has 8-bit products; the recipe's name alone finds them."""
    path = bundle("fp16")
    quantize(path, Choices(read_recipe("int8"), Precision.FP16, samples, max_drop=0.25), questions)
    quantize(path, Choices(read_recipe("int4"), Precision.FP16, samples, max_drop=0.25), questions)
    for precision in (Precision.INT8, Precision.INT4):
        entries = build(
            path,
            BuildChoices(
                backend="tensorrt-rtx", precision=precision, targets=("sm80", "sm89", "sm120"), components=PIPELINE
            ),
        )
        assert {entry.precision for entry in entries} == {Precision.of(precision.quantization, Precision.FP16)}
        decoder = next(entry for entry in entries if entry.component is Component.DECODER)
        assert decoder.layers["QUANTIZE"] > 0 if precision is Precision.INT8 else decoder.layers["DEQUANTIZE"] > 0


def test_answers_that_are_too_much_worse_are_not_published(bundle: Copy, questions: DataSet, samples: str) -> None:
    """Activations cut where half of them lie."""
    path = bundle()
    before = (path / MANIFEST).read_text()
    recipe = Recipe(Kind.INT8, 0.0, observer=Observer.PERCENTILE, percentile=50)
    with pytest.raises(VerificationError) as caught:
        quantize(path, Choices(recipe, samples=samples), questions)
    text = str(caught.value)
    assert "the int8 answers are too much worse (" in text
    assert "all together fell from" in text and "The layers furthest from what they were: " in text
    assert (path / MANIFEST).read_text() == before and not (path / "graphs" / "int8").exists()
    assert not json.loads((path / "reports" / "quantization-int8-refused.json").read_text())["judged"]["passed"]
    assert not (path / "reports" / "quantization-int8.json").exists()
    assert not (path / state.FOLDER).exists() and not (path / ".at-work").exists()


def test_a_layer_can_be_kept(bundle: Copy, questions: DataSet) -> None:
    path = bundle()
    recipe = Recipe(Kind.INT8_WEIGHT, 0.3, layers={"vision_encoder.*": Kind.FLOAT, "*.lm_head": Kind.INT4})
    report = quantize(path, Choices(recipe), questions)
    kinds = {one.layer: one.kind for one in report.layers}
    assert not any(layer.startswith("vision_encoder") for layer in kinds)
    assert kinds["decoder.lm_head"] is Kind.INT4 and kinds["resampler.key"] is Kind.INT8_WEIGHT


def test_the_layers_that_have_to_stay_are_found(bundle: Copy, questions: DataSet, samples: str) -> None:
    """Only the resampler's activations are rounded, and a third of them cut."""
    path, said = bundle(), list[str]()
    floats = {"vision_encoder.*": Kind.FLOAT, "decoder.*": Kind.FLOAT}
    recipe = Recipe(Kind.INT8, 0.0, observer=Observer.PERCENTILE, percentile=70, layers=floats)
    report = quantize(path, Choices(recipe, samples=samples, auto=True), questions, said.append)
    assert report.verdict is not None and report.verdict.passed and 0 < len(report.kept) < 5
    assert len(report.layers) == 5 - len(report.kept)
    assert any("; the answers do not (" in line for line in said)
    assert json.loads((path / report.path).read_text())["kept"] == list(report.kept)


def test_a_sample_that_does_not_fit_is_named_before_the_first_is_asked(
    bundle: Copy, questions: DataSet, tmp_path: Path
) -> None:
    (tmp_path / "scene.png").write_bytes(SCENE.read_bytes())
    pictures = []
    for at in range(16):
        pictures.append(f"{at}.png")
        Image.new("RGB", (8, 8), (at, 0, 0)).save(tmp_path / pictures[-1])
    lines = [json.dumps({"images": [name], "prompt": "star " * (2000 if name == "9.png" else 1)}) for name in pictures]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    path = bundle()
    with pytest.raises(PromptError, match=r"^own.jsonl:10: the prompt has \d+ tokens"):
        quantize(path, Choices(read_recipe("int8"), samples=str(tmp_path / "own.jsonl")), questions)
    assert not (path / state.FOLDER).exists()


def test_a_rule_for_no_layer_is_a_mistake(bundle: Copy, questions: DataSet) -> None:
    recipe = Recipe(Kind.INT8_WEIGHT, 0.3, layers={"decoder.head": Kind.FLOAT})
    with pytest.raises(UsageError, match="no layer is called 'decoder.head', .*; names are like vision_encoder"):
        quantize(bundle(), Choices(recipe), questions)


def test_graphs_that_are_there_are_not_replaced_unasked(bundle: Copy, questions: DataSet) -> None:
    path, choices = bundle(), Choices(read_recipe("int8-weight"), max_drop=0.3)
    quantize(path, choices, questions)
    with pytest.raises(UsageError, match="already has int8-weight graphs; --force replaces them"):
        quantize(path, choices, questions)


def test_a_bundle_without_the_float_graphs_is_refused(bundle: Copy, questions: DataSet) -> None:
    with pytest.raises(UsageError, match=r"has not all fp16 graphs \(it has fp32\); .*--precision fp16"):
        quantize(bundle(), Choices(read_recipe("int8-weight"), Precision.FP16), questions)


def test_graphs_of_unknown_worth_are_not_quantized(copied: Copy, questions: DataSet) -> None:
    with pytest.raises(VerificationError, match="the fp32 graphs are not verified, .*vlm-trt verify"):
        quantize(copied("ntk-256"), Choices(read_recipe("int8-weight")), questions)


def test_changed_graphs_are_not_quantized(bundle: Copy, questions: DataSet) -> None:
    path = bundle()
    weights = path / "graphs" / "fp32" / "decoder.weights"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="decoder.weights was changed after it was made"):
        quantize(path, Choices(read_recipe("int8-weight")), questions)


def test_an_activation_that_is_not_finite_is_named(
    bundle: Copy, questions: DataSet, samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundle()
    linears = find_linears(ir.load(path / "graphs" / "fp32" / "decoder.onnx"), Component.DECODER)
    source = next(one.source for one in linears if one.name == "decoder.layers.1.mlp.down")

    def broken(watch: Watch, component: Component, name: str, values: np.ndarray) -> None:
        hit = component is Component.DECODER and name == source
        look(watch, component, name, np.where(values == values.max(), np.nan, values) if hit else values)

    look = Watch.look
    monkeypatch.setattr(Watch, "look", broken)
    sentence = f"the activation {source} of the fp32 decoder is not finite at sample samples.jsonl:1, so no scale"
    with pytest.raises(VerificationError, match=sentence):
        quantize(path, Choices(read_recipe("int8"), samples=samples), questions)


def test_a_calibration_that_was_ended_goes_on_where_it_was(
    in_int8: Path, tmp_path: Path, questions: DataSet, samples: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with the same bytes as one that was not."""
    path = shutil.copytree(in_int8, tmp_path / "bundle")
    choices = Choices(read_recipe("int8"), samples=samples, max_drop=0.25)
    whole = {entry.identity for entry in Bundle.open(path).manifest.graphs}
    monkeypatch.setattr(planning, "_SAVED_EVERY_SECONDS", 0)
    real, begun = planning.observe, list[int]()

    def observed(*arguments: Any) -> None:
        *others, first, progress = arguments
        begun.append(first)

        def ended(done: int) -> None:
            progress(done)
            if len(begun) == 1 and done == 5:
                raise KeyboardInterrupt

        real(*others, first, ended)

    monkeypatch.setattr(planning, "observe", observed)
    with pytest.raises(KeyboardInterrupt):
        quantize(path, replace(choices, force=True), questions)
    (own,) = (path / state.FOLDER).glob("*.npz")
    other, half = own.with_stem("0123456789abcdef"), own.with_name(f".{own.name}.0123")  # a killed run's
    for one in (other, half):
        one.write_bytes(b"")
    with pytest.raises(UsageError, match="already has int8 graphs"):
        quantize(path, choices, questions)
    assert own.exists() and other.exists()  # a mistake costs nothing
    quantize(path, replace(choices, force=True), questions)
    assert begun == [0, 5, 0]  # the second pass, over balanced activations, is another calibration
    assert {entry.identity for entry in Bundle.open(path).manifest.graphs} == whole
    assert not (path / state.FOLDER).exists()


def test_pictures_that_were_calibrated_on_do_not_judge_later_either(
    in_int8: Path, tmp_path: Path, questions: DataSet, samples: str
) -> None:
    path = shutil.copytree(in_int8, tmp_path / "bundle")
    (path / "reports" / "quantization-int8.json").unlink()  # a report is for readers, and decides nothing
    known = read_samples(Path(samples))[0]
    example = replace(questions.examples[0], images=known.images, history=())
    with pytest.raises(DataSetError, match="asks about a picture that is among the samples; calibrate and evaluate on"):
        judge_published(path, Precision.INT8, replace(questions, examples=(example,)), 0.3)


def test_a_second_command_is_told_of_the_first_and_goes_on_after_its_death(bundle: Copy, samples: str) -> None:
    """Killed while it writes graphs, it leaves the bundle as it was."""
    path = bundle()
    before = (path / MANIFEST).read_text()
    command = [sys.executable, "-m", "vlm_trt.cli", "quantize", str(path), "--recipe", "int8", "--samples", samples]
    command += ["--evaluate", "none"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list(path.glob(".graphs.staging-*/graphs/int8/*.onnx")) and running.poll() is None:
        time.sleep(0.02)
    at_work = (
        rf"is being worked on by process {running.pid} on .* \(cli.py quantize .*\); wait for it to end, or end it"
    )
    with pytest.raises(StorageError, match=at_work):
        quantize(path, Choices(read_recipe("int8-weight")), None)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert (path / MANIFEST).read_text() == before and not (path / "graphs" / "int8").exists()
    quantize(path, Choices(read_recipe("int8-weight")), None)
    assert (
        list((path / state.FOLDER).glob("*.npz")) and not (path / ".at-work").exists()
    )  # what the first one saw stays


def test_quantized_graphs_are_not_compared_with_the_model(bundle: Copy, questions: DataSet) -> None:
    path = bundle()
    quantize(path, Choices(read_recipe("int8-weight"), max_drop=0.3), questions)
    with pytest.raises(UsageError, match="graphs are not equal to the model by design; .*vlm-trt verify"):
        verify(path, precision="int8-weight", backend_name="cpu")


@pytest.mark.parametrize("share", [float("nan"), float("inf"), -0.1, 1.5, 1e9])
def test_a_drop_that_is_no_share_is_refused_before_anything_is_opened(
    share: float, questions: DataSet, tmp_path: Path
) -> None:
    """NaN compares as if every answer were good enough."""
    sentence = r"the score that a task may lose is \S+; give --max-drop a share from 0 to 1"
    for choices in (Choices(read_recipe("int8"), max_drop=share), Choices(Recipe(Kind.INT8, share))):
        with pytest.raises(UsageError, match=sentence):
            quantize(tmp_path / "nowhere", choices, questions)
    with pytest.raises(UsageError, match=sentence):
        judge_published(tmp_path / "nowhere", Precision.INT8, questions, share)


def test_a_verdict_on_answers_says_what_was_allowed_and_is_void_with_it(bundle: Copy, questions: DataSet) -> None:
    path = bundle()
    quantize(path, Choices(read_recipe("int8-weight"), max_drop=0.3), questions)
    manifest = Bundle.open(path).manifest
    verdict, made = manifest.verification(Precision.INT8_WEIGHT), manifest.quantization(Precision.INT8_WEIGHT)
    assert verdict is not None and verdict.figures["max_drop"] == 0.3
    assert made is not None and (made.max_drop, made.pictures) == (0.3, ())
    assert made.floats == manifest.identities(Precision.FP32)
    edit_manifest(path, lambda raw: set_field(raw, "quantizations.0.max_drop", 0.9))
    with pytest.raises(VerificationError, match=r"not verified as they are now \(changed since: quantization\)"):
        load(path, precision="int8-weight", backend="cpu")


def test_graphs_that_nobody_judged_are_not_used_before(bundle: Copy, questions: DataSet) -> None:
    """Made where the questions cannot be answered, judged elsewhere; a bad verdict stays."""
    path = bundle()
    assert quantize(path, Choices(read_recipe("int8-weight")), None).verdict is None
    with pytest.raises(VerificationError, match="int8-weight graphs are not verified, .*vlm-trt verify .*int8-weight"):
        load(path, precision="int8-weight", backend="cpu")
    assert judge_published(path, Precision.INT8_WEIGHT, questions, 0.3).passed
    load(path, precision="int8-weight", backend="cpu")
    written = json.loads((path / "reports" / "quantization-int8-weight.json").read_text())
    assert written["judged"]["passed"] and len(written["layers"]) == 42
    recipe = Recipe(Kind.INT8, 0.0, observer=Observer.PERCENTILE, percentile=50)
    quantize(path, Choices(recipe), None)
    assert not judge_published(path, Precision.INT8, questions, 0.0).passed
    with pytest.raises(VerificationError, match="int8 graphs failed verification"):
        load(path, precision="int8", backend="cpu")


def test_float_graphs_that_are_not_verified_give_no_verdict(copied: Copy) -> None:
    """Neither at once nor later: as good as something unknown is nothing."""
    path, questions = copied("ntk-256"), synthetic(4, 7)
    quantize(path, Choices(read_recipe("int8-weight"), unverified=True), None)
    with pytest.raises(VerificationError, match="the fp32 graphs, which the answers are compared with, were not shown"):
        judge_published(path, Precision.INT8_WEIGHT, questions, 1.0)
    assert Bundle.open(path).manifest.verification(Precision.INT8_WEIGHT) is None


def test_questions_that_nobody_answers_judge_nothing(verified: Copy, tmp_path: Path) -> None:
    """Random weights answer next to nothing right, and so would any others."""
    shutil.copytree(verified("ntk-256"), tmp_path / "bundle")
    with pytest.raises(VerificationError, match=r"the float graphs answer next to nothing right \(0.0\d+\); give"):
        quantize(tmp_path / "bundle", Choices(read_recipe("int8-weight"), max_drop=1.0), synthetic(4, 7))


def test_graphs_that_were_exported_again_are_not_judged_by_the_new_ones(bundle: Copy, questions: DataSet) -> None:
    path = bundle()
    quantize(path, Choices(read_recipe("int8-weight")), None)
    edit_manifest(path, lambda raw: set_field(raw, "quantizations.0.floats", ["decoder:other"]))
    with pytest.raises(
        VerificationError, match="were made from other fp32 graphs than those there; quantize it: .*--force"
    ):
        judge_published(path, Precision.INT8_WEIGHT, questions, 0.3)


def test_seen_activations_do_not_grow_with_the_samples() -> None:
    one, random = Seen(16), np.random.default_rng(0)
    for _ in range(200):
        one.add(np.ones((64, 16), np.float32), random)
    assert sum(array.nbytes for array in (one.counts, one.rows, one.keys, one.squares)) < 100_000
