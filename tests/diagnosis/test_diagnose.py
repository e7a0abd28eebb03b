"""Graphs that are off: where that begins, and what makes them right."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.exporter.checkpoints import coarse, deaf, loud
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import DataSetError, UsageError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.calibration.prepare import Choices as Quantizing
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import Kind, Observer, Recipe
from vlm_trt.diagnosis.diagnose import as_json, diagnose, islands, reference_of, samples_of, verification_samples
from vlm_trt.diagnosis.islands import Island
from vlm_trt.diagnosis.layers import added, costliest
from vlm_trt.diagnosis.mend import mend
from vlm_trt.engines.build import Choices as Building
from vlm_trt.engines.build import build
from vlm_trt.exporter.export import Choices, export
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.options import Options
from vlm_trt.verification.verify import verify

SCENE = ROOT / "examples" / "demo_model" / "scene.png"


def two_precisions(checkpoint: Path, target: Path, precision: Precision = Precision.FP16) -> Bundle:
    """fp32 graphs, verified, and others beside them that are not."""
    for one in (Precision.FP32, precision):
        export(checkpoint, target, Choices(one))
    assert verify(target, precision="fp32", backend_name="cpu").passed
    return Bundle.open(target)


@pytest.fixture(scope="module")
def too_loud(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose fp16 graphs compute beyond fp16; not written into."""
    folder = tmp_path_factory.mktemp("loud")
    return two_precisions(loud(folder / "checkpoint"), folder / "bundle")


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_good_graphs_are_sound(precision: Precision, tmp_path: Path) -> None:
    bundle = two_precisions(ROOT / "examples" / "demo_model" / "checkpoint", tmp_path / "bundle", precision)
    found = diagnose(bundle, precision, verification_samples(bundle)[:2])
    assert found.sound and not islands(bundle, found)
    assert [len(own) for own in found.deviations.values()] == [105, 21, 137]
    assert found.reference is Precision.FP32


def test_an_overflow_is_found_where_it_begins(too_loud: Bundle) -> None:
    found = diagnose(too_loud, Precision.FP16, verification_samples(too_loud)[:2])
    assert not found.off(Component.VISION_ENCODER) and not found.off(Component.RESAMPLER)
    (begin,) = found.begin(Component.DECODER)
    assert (begin.pair.part, begin.pair.operator) == ("decoder.layers.1.mlp", "Mul")
    assert begin.relative == float("inf") and 150_000 < begin.magnitude < 200_000
    (island,) = islands(too_loud, found).values()
    assert island.unrounded == (begin.pair.found,)
    parts = [one.pair.part for one in found.deviations[Component.DECODER] if one.pair.node in island.nodes]
    assert parts == ["decoder.layers.1.mlp", "decoder.layers.1.mlp.down"]
    written = as_json(found)["components"]["decoder"]
    assert written["off"][0]["relative"] is None and written["begin"] == [begin.pair.found]
    json.loads(json.dumps(written, allow_nan=False))


def test_what_overflows_is_mended_and_published(too_loud: Bundle, tmp_path: Path) -> None:
    shutil.copytree(too_loud.path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    before = {one.identity for one in bundle.manifest.graphs}
    asked = verification_samples(bundle)[:2]
    done = mend(bundle, diagnose(bundle, Precision.FP16, asked), asked)
    assert done.rounds == 1 and done.after.sound and done.report.passed
    opened = Bundle.open(bundle.path)
    verdict = opened.manifest.verification(Precision.FP16)
    assert verdict is not None and verdict.passed and json.loads((bundle.path / verdict.report).read_text())["passed"]
    changed = {one.identity for one in opened.manifest.graphs} - before
    assert len(changed) == 1 and changed.pop().startswith("decoder")
    answers = {
        precision: load(bundle.path, precision=precision, backend="cpu")
        .generate("What is in the picture?", [SCENE.read_bytes()], Options(greedy=True))
        .text
        for precision in ("fp32", "fp16")
    }
    assert answers["fp32"] == answers["fp16"]
    entries = build(bundle.path, Building(backend="tensorrt-rtx", precision=Precision.FP16, targets=("sm89",)))
    assert len(entries) == 4
    assert diagnose(opened, Precision.FP16, asked).sound
    assert not list(bundle.path.glob(".*staging*"))


def test_digits_that_a_rounding_takes_are_given_back(tmp_path: Path) -> None:
    """Keys around 300 fit fp16, and their differences do not: their way from the bias to the attention stays fp32."""
    bundle = two_precisions(coarse(tmp_path / "checkpoint"), tmp_path / "bundle")
    asked = verification_samples(bundle)[:2]
    found = diagnose(bundle, Precision.FP16, asked)
    (begin,) = found.begin(Component.VISION_ENCODER)
    assert (begin.pair.part, begin.pair.operator) == ("vision_encoder.layers.1.attention", "Attention")
    assert any(not one.within(found.tolerance) for one in found.deviations[Component.VISION_ENCODER])
    done = mend(bundle, found, asked)
    (island,) = done.islands.values()
    assert 3 < done.rounds < 8 and len(island.unrounded) > 3
    assert done.after.sound and done.report.passed


def test_what_goes_into_the_cache_cannot_be_mended(tmp_path: Path) -> None:
    bundle = two_precisions(deaf(tmp_path / "checkpoint"), tmp_path / "bundle")
    before = (bundle.path / MANIFEST).read_text()
    found = diagnose(bundle, Precision.FP16)
    with pytest.raises(
        VerificationError, match=r"decoder\.layers\.1\.attention\S* makes values up to .* into the cache"
    ):
        mend(bundle, found, verification_samples(bundle))
    assert (bundle.path / MANIFEST).read_text() == before


def test_graphs_that_still_fail_are_not_published(too_loud: Bundle, tmp_path: Path) -> None:
    """Samples that do not show the fault: its verification does."""
    shutil.copytree(too_loud.path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    before = (bundle.path / MANIFEST).read_text()
    real = diagnose(bundle, Precision.FP16, verification_samples(bundle)[:1])
    useless = Island(Component.DECODER, ("node_embedding",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_trt.diagnosis.mend.islands", lambda *_: {Component.DECODER: useless})
        with pytest.raises(VerificationError, match="with 1 nodes in fp32 the fp16 graphs still fail verification"):
            mend(bundle, real, verification_samples(bundle)[:1])
    assert (bundle.path / MANIFEST).read_text() == before


def test_the_layers_that_cost_most_are_named(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """One layer's activations are cut where half of them lie; the rest is in 8-bit weights."""
    shutil.copytree(demo_bundle("fp32"), tmp_path / "bundle")
    cut = {"*": Kind.INT8_WEIGHT, "decoder.layers.2.mlp.down": Kind.INT8}
    recipe = Recipe(Kind.INT8, 0.3, observer=Observer.PERCENTILE, percentile=50, layers=cut)
    quantize(tmp_path / "bundle", Quantizing(recipe), None)
    bundle = Bundle.open(tmp_path / "bundle")
    found = diagnose(bundle, Precision.INT8, verification_samples(bundle)[:2])
    errors = added(bundle, found)
    assert len(errors) == 42 and found.reference is Precision.FP32
    assert errors[0].layer == costliest(errors)[0] == "decoder.layers.2.mlp.down"
    assert len(costliest(errors)) < 4  # and those behind it, which its error is made larger by


def test_channels_that_were_balanced_are_no_fault(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """SmoothQuant divides a norm's output, and multiplies the next matrix: nothing changes but the rounding."""
    shutil.copytree(demo_bundle("fp32"), tmp_path / "bundle")
    everything_but_one = {"*": Kind.FLOAT, "vision_encoder.layers.0.attention.qkv": Kind.INT8}
    quantize(tmp_path / "bundle", Quantizing(Recipe(Kind.INT8, 0.3, balance=0.7, layers=everything_but_one)), None)
    bundle = Bundle.open(tmp_path / "bundle")
    found = diagnose(bundle, Precision.INT8, verification_samples(bundle)[:1])
    norm = next(one for one in found.deviations[Component.VISION_ENCODER] if one.pair.part.endswith("0.attention_norm"))
    assert norm.cosine > 0.999999


def test_a_users_samples_show_a_fault(too_loud: Bundle, tmp_path: Path) -> None:
    (tmp_path / "scene.png").write_bytes(SCENE.read_bytes())
    (tmp_path / "own.jsonl").write_text('{"images": ["scene.png"], "prompt": "Find all stars."}\n')
    (sample,) = samples_of(too_loud, tmp_path / "own.jsonl")
    found = diagnose(too_loud, Precision.FP16, [sample])
    assert found.begin(Component.DECODER)[0].sample == "own.jsonl:1"


def test_samples_without_pictures_are_refused(too_loud: Bundle, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(json.dumps({"images": [], "prompt": "Hello"}))
    with pytest.raises(
        DataSetError, match=r"none of the 1 samples looked at in .*own.jsonl has a picture, so nothing .*"
    ):
        samples_of(too_loud, tmp_path / "own.jsonl")


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        (Precision.FP32, "fp32 graphs are compared with the model itself; run: vlm-trt verify"),
        (Precision.BF16, "has no bf16 graphs, and the bf16 ones are compared with fp32 ones; export it: .*bf16"),
        (Precision.INT4, "has no int4 graphs, .*quantize it: vlm-trt quantize .* --evaluate none"),
    ],
)
def test_what_is_not_there_is_not_compared(precision: Precision, sentence: str, too_loud: Bundle) -> None:
    with pytest.raises(UsageError, match=sentence):
        reference_of(too_loud, precision)


def test_graphs_of_unknown_worth_are_no_reference(tmp_path: Path) -> None:
    for precision in (Precision.FP32, Precision.FP16):
        export(ROOT / "examples" / "demo_model" / "checkpoint", tmp_path / "bundle", Choices(precision))
    with pytest.raises(
        VerificationError, match="the fp32 graphs, which the fp16 ones are compared with, are not shown"
    ):
        diagnose(Bundle.open(tmp_path / "bundle"), Precision.FP16)
