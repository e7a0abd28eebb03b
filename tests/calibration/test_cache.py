"""A cache in 8 bits: the same integers from the graph and from ONNX Runtime's own attention; judged and audited."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from tests.calibration.drawn import write_samples
from tests.runtime.test_grouped_attention import GROUPED, filled
from tests.tampering import change_weight, entry_of, vouch
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import signature
from vlm_trt.bundle.store import Bundle, how_to_make
from vlm_trt.calibration.audit import audit
from vlm_trt.calibration.cache import find_cached, round_cache, scales_of
from vlm_trt.calibration.prepare import Choices, prepare
from vlm_trt.calibration.quantize import judge_published, quantize
from vlm_trt.calibration.recipe import Kind, Recipe
from vlm_trt.calibration.rounding import Floats
from vlm_trt.calibration.weight_file import WeightFile
from vlm_trt.cli import main
from vlm_trt.diagnosis.pairs import pairs
from vlm_trt.engines.build import Choices as BuildChoices
from vlm_trt.engines.build import build
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.runtime.cache import KVCache
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.runtime.packing import pack

DECODER = Component.DECODER
CACHE8 = Precision.INT8_WEIGHT_CACHE8
RECIPE = Recipe(Kind.INT8_WEIGHT, 1.0, cache=Kind.INT8)


def float_engine(bundle: Path) -> Engine:
    return open_engine(Bundle.open(bundle), Precision.FP32, CpuBackend(threads=1))


def limits_of(engine: Engine) -> list[Floats]:
    """What keys and values of each layer reach, per head and channel, in graph order."""
    return [np.abs(buffer.read()).max(axis=(0, 2)).reshape(-1) for layer in engine.cache._layers for buffer in layer]


def rounded(bundle: Path, limits: list[Floats], folder: Path) -> Path:
    """The decoder in fp32 with a cache in 8 bits."""
    model, target = ir.load(bundle / "graphs" / "fp32" / "decoder.onnx"), folder / "decoder.onnx"
    cached = find_cached(model)
    ordered = sorted(cached, key=lambda one: (int(one.name.split(".")[1]), one.name))
    with WeightFile(target.with_suffix(".weights")) as file:
        for value in model.graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = file.append(str(value.name), value.const_value.numpy(), value.const_value.dtype)
        round_cache(model, {one.source: own for one, own in zip(ordered, limits, strict=True)}, file)
    target.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    return target


def engine_of(bundle: Path, decoder: Path, *, grouped: bool) -> Engine:
    """An engine whose decoder is that one."""
    backend, opened = CpuBackend(threads=1, grouped=grouped), Bundle.open(bundle)
    model, limits = opened.manifest.model, opened.manifest.limits
    files = {one: bundle / opened.graph(one, Precision.FP32).graph.path for one in model.components}
    sessions = {one: backend.open(decoder if one is DECODER else file) for one, file in files.items()}
    return Engine(model, limits, CACHE8, backend, sessions, KVCache(backend, model, limits, CACHE8))


@pytest.mark.parametrize("name", GROUPED)
def test_both_forms_cache_the_same_integers(name: str, exported: Callable[..., Path], tmp_path: Path) -> None:
    """In the first layer, before sums of another length are rounded otherwise, every one; then next to every one."""
    bundle = exported(name)
    floats = float_engine(bundle)
    expected = filled(floats)
    decoder = rounded(bundle, limits_of(floats), tmp_path)
    apart, grouped = (filled(engine_of(bundle, decoder, grouped=form)) for form in (False, True))
    layers = 2 * floats.model.decoder.layers
    assert {one.dtype for one in grouped[-layers:]} == {np.dtype(np.int8)}
    for one, other in zip(apart[-layers:], grouped[-layers:], strict=True):
        difference = np.abs(one.astype(int) - other)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3
    for right, one, other in zip(expected[:-layers], apart[:-layers], grouped[:-layers], strict=True):
        largest = np.abs(right).max()
        assert np.abs(one - other).max() < 5e-3 * largest
        assert 0 < np.abs(other - right).max() < 0.1 * largest


def test_a_scale_is_a_127th_of_what_a_channel_reaches() -> None:
    """And a channel of which nothing was seen has a small part of the largest one's."""
    found = scales_of(np.array([12.7, 0, 1.27], np.float32))
    assert np.allclose(found, [0.1, 0.1 / 1024, 0.01])
    assert np.allclose(scales_of(np.zeros(2, np.float32)), 1 / 127)


def test_the_contract_says_the_type_of_the_cache(exported: Callable[..., Path]) -> None:
    manifest = Bundle.open(exported("ntk-256")).manifest
    contract = signature(DECODER, manifest.model, manifest.limits, Precision.INT4_CACHE8)
    assert {one.dtype for one in contract.inputs if one.name.startswith("past")} == {"int8"}
    assert {one.dtype for one in contract.outputs if one.name.startswith("present")} == {"int8"}
    assert {one.dtype for one in contract.inputs if one.name == "image_features"} == {"float32"}


def test_precisions_with_such_a_cache() -> None:
    one = Precision("int4-cache8")
    assert (one.kind, one.floating, one.dtype, one.cache_dtype) == ("int4", Precision.FP32, "float32", "int8")
    assert one.flavours((Precision.FP16,)) == (one,)
    assert Precision.of("int4", Precision.FP32) is Precision.INT4
    assert Precision.of("int4", Precision.FP32, "int8") is one
    assert how_to_make(one) == "quantize it: vlm-trt quantize BUNDLE --recipe int4 --activations fp32 --cache int8"


@pytest.fixture(scope="module")
def made(demo_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model so quantized, by the command, and not judged."""
    path = tmp_path_factory.mktemp("quantized") / "bundle"
    shutil.copytree(demo_bundle("fp32"), path)
    samples = write_samples(tmp_path_factory.mktemp("samples"))
    asked = ["--recipe", "int8-weight", "--cache", "int8", "--samples", samples, "--evaluate", "none"]
    result = CliRunner().invoke(main, ["quantize", str(path), *asked])
    assert result.exit_code == 0 and "int8-weight-cache8: " in result.output, result.output
    return path


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def test_its_answers_hold(copied: Path) -> None:
    verdict = judge_published(copied, CACHE8, synthetic(24, 7), 0.25)
    assert verdict.passed and 0 < verdict.divergence.mean < 0.05
    model = load(copied, precision=CACHE8, backend="cpu")
    assert model.generate("What color is the star?", options=Options(greedy=True)).text
    assert {buffer.dtype for layer in model.engine.cache._layers for buffer in layer} == {"int8"}
    assert pack(copied, CACHE8)


def test_what_is_written_passes_an_audit_and_what_was_changed_does_not(copied: Path) -> None:
    assert audit(Bundle.open(copied), CACHE8).failures == ()

    def half(values: Floats) -> None:
        values[0, 0, 0, 0] /= 2

    change_weight(copied, DECODER, CACHE8, "past_key_values.1.key.scale", half)
    (failure,) = audit(Bundle.open(copied), CACHE8).failures
    assert failure.startswith("audit: past_key_values.1.key.scale in ")


def test_a_record_from_before_caches_is_read(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    path = Path(shutil.copytree(demo_bundle("fp32"), tmp_path / "bundle"))
    quantize(path, Choices(replace(RECIPE, cache=Kind.FLOAT)), None)
    entry = entry_of(path, DECODER, Precision.INT8_WEIGHT)
    assert entry.calibration is not None
    file = path / entry.calibration.path
    record = json.loads(file.read_text())
    assert record.pop("cache") == {}
    file.write_text(json.dumps(record))
    vouch(path)
    assert audit(Bundle.open(path), Precision.INT8_WEIGHT).failures == ()


def test_a_record_of_half_a_cache_is_refused(copied: Path) -> None:
    entry = entry_of(copied, DECODER, CACHE8)
    assert entry.calibration is not None
    file = copied / entry.calibration.path
    record = json.loads(file.read_text())
    record["cache"].popitem()
    file.write_text(json.dumps(record))
    vouch(copied)
    with pytest.raises(Exception, match="a cache of which a part has 8 bits"):
        audit(Bundle.open(copied), CACHE8)


def test_its_graphs_can_be_diagnosed(made: Path) -> None:
    """Node by node: those that round the cache are left out."""
    right, found = (ir.load(made / "graphs" / one / "decoder.onnx") for one in ("fp32", CACHE8))
    plain = pairs(DECODER, right, ir.load(made / "graphs" / "fp32" / "decoder.onnx"))
    cached = pairs(DECODER, right, found)
    layers = sum(one.operator == "Attention" for one in cached)
    assert layers > 0 and len(cached) == len(plain) - 4 * layers  # what is written and what is looked at


@pytest.mark.parametrize(
    ("recipe", "floating", "sentence"),
    [
        (RECIPE, Precision.FP16, "a cache in 8 bits is for the CPU, .* and fp16 activations is for TensorRT"),
        (replace(RECIPE, kind=Kind.FP8), Precision.FP32, "and the recipe fp8 is for TensorRT; leave out one of both"),
    ],
)
def test_engines_have_no_such_cache(recipe: Recipe, floating: Precision, sentence: str, made: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        prepare(made, Choices(recipe, floating, force=True), None)


def test_no_engine_is_built_from_its_graphs(made: Path) -> None:
    choices = BuildChoices(backend="tensorrt-rtx", precision=CACHE8, targets=("sm89",))
    with pytest.raises(UsageError, match="TensorRT does not; build others: --precision int8-weight"):
        build(made, choices)


def test_models_whose_attention_is_written_out_have_none(exported: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="takes no capped scores .* leave cache out of the recipe"):
        prepare(exported("paligemma2"), Choices(RECIPE, unverified=True), None)
