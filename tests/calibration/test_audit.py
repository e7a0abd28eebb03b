"""Quantized graphs are what their recipe makes of the float ones: every integer, scale and node."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from tests.calibration.drawn import write_samples
from tests.tampering import Change, change_graph, change_weight, entry_of, vouch
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import BundleError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.calibration.audit import audit
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import judge_published, quantize
from vlm_trt.calibration.recipe import Kind, Observer, Recipe
from vlm_trt.evaluation.synthetic import synthetic

DECODER = Component.DECODER
INT8, INT4 = Precision.INT8, Precision.INT4
Copied = Callable[[], Path]


@pytest.fixture(scope="module")
def made(demo_bundle: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle with all that a recipe can do: balanced W8A8, 4-bit blocks, 8-bit floats, weights alone."""
    path = tmp_path_factory.mktemp("quantized") / "bundle"
    shutil.copytree(demo_bundle("fp32"), path)
    layers = {
        "vision_encoder.*": Kind.FLOAT, "vision_encoder.layers.0.*": Kind.INT8, "resampler.*": Kind.INT8_WEIGHT,
        "decoder.layers.1.*": Kind.INT4, "decoder.layers.2.*": Kind.FP8, "decoder.layers.3.mlp.*": Kind.FLOAT,
        "decoder.lm_head": Kind.INT8_WEIGHT,
    }  # fmt: skip
    recipe = Recipe(Kind.INT8, 0.5, 32, Observer.MAX, balance="search", layers=layers)
    quantize(path, Choices(recipe, samples=write_samples(tmp_path_factory.mktemp("samples"))), None)
    yield path


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Copied:
    def copy() -> Path:
        shutil.copytree(made, tmp_path / "bundle")
        return tmp_path / "bundle"

    return copy


def failures(path: Path) -> tuple[str, ...]:
    return audit(Bundle.open(path), INT8).failures


def test_what_was_quantized_passes(made: Path) -> None:
    found = audit(Bundle.open(made), INT8)
    assert found.failures == ()
    assert re.fullmatch(r"audit: \d\d\d weights, \d\.\d\d MB, bit for bit; \d\d\d constants", found.summary)
    kept = json.loads((made / "graphs/int8/decoder.calibration.json").read_text())
    assert {kind for kind, _ in kept["layers"].values()} == {"int8", "int4", "fp8", "int8-weight"}
    assert kept["factors"] and kept["limits"] and kept["importance"]


def test_the_sampler_is_copied_and_stays_as_it_is(copied: Copied) -> None:
    path = copied()
    manifest = Bundle.open(path).manifest
    one, other = (manifest.graph(Component.SAMPLER, precision) for precision in (INT8, INT8.floating))
    assert one is not None and other is not None and one.weights is None and one.calibration is None
    assert one.graph.sha256 == other.graph.sha256
    made_from = manifest.quantization(INT8)
    assert made_from is not None and other.identity in made_from.floats

    def change(model: onnx.ModelProto) -> None:
        next(node for node in model.graph.node if node.op_type == "LessOrEqual").op_type = "Less"

    change_graph(path, Component.SAMPLER, INT8, change)
    (failure,) = failures(path)
    graphs = path / "graphs"
    assert failure == (
        f"audit: {graphs}/int8/sampler.onnx is not {graphs}/fp32/sampler.onnx, which no quantization changes; "
        f"quantize it: vlm-trt quantize {path} --recipe int8 --activations fp32 --force"
    )


def one_more(values: NDArray[Any]) -> None:
    values.reshape(-1).view(np.uint8)[9] ^= 1


def next_scale(values: NDArray[Any]) -> None:
    values.reshape(-1)[3] = np.nextafter(values.reshape(-1)[3], np.float32(1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("layers.0.mlp.up.weight.integers", one_more),
        ("layers.0.mlp.up.weight.scale", next_scale),
        ("layers.1.mlp.up.weight.integers", one_more),
        ("layers.1.mlp.up.weight.scale", next_scale),
        ("layers.2.mlp.up.weight.integers", one_more),
        ("layers.0.mlp_norm.weight", next_scale),  # what was divided
        ("layers.3.mlp.up.weight", next_scale),  # what was left in float
        ("embedding.weight.integers", one_more),
        ("embedding.weight.scale", next_scale),
    ],
)
def test_a_number_that_was_changed_is_named(name: str, change: Change, copied: Copied) -> None:
    path = copied()
    change_weight(path, DECODER, INT8, name, change)
    (failure,) = failures(path)
    weights = path / entry_of(path, DECODER, INT8).weights.path
    known = name.removesuffix(".integers")  # as the float graph calls it
    assert failure.startswith(f"audit: {known} in {weights} is not what the quantization makes: "), failure
    assert failure.endswith(
        f"bytes differ, of {path}/graphs/fp32/decoder.onnx; quantize it: vlm-trt quantize {path} --recipe int8 "
        "--activations fp32 --force"
    )


def other_scale(model: onnx.ModelProto) -> None:
    scale = next(one for one in model.graph.initializer if one.name.endswith(".int8.scale"))
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.01), scale.name))


def other_zero(model: onnx.ModelProto) -> None:
    zero = next(one for one in model.graph.initializer if one.name.endswith(".int8.zero"))
    zero.CopyFrom(numpy_helper.from_array(np.array(127, np.uint8), zero.name))


def other_epsilon(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "RMSNormalization")
    next(one for one in node.attribute if one.name == "epsilon").f = 1e-5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (other_scale, r"audit: QuantizeLinear '\S+' takes the constant 0\.\d+ instead of the constant 0\.\d+ \("),
        (other_zero, r"audit: QuantizeLinear '\S+' takes the constant 127 instead of the constant 128 \("),
        (other_epsilon, r"audit: RMSNormalization '\S+' of layers\.0\.attention_norm has epsilon 9\.99999975e-06"),
    ],
)
def test_a_node_that_was_changed_is_named(
    change: Callable[[onnx.ModelProto], None], sentence: str, copied: Copied
) -> None:
    path = copied()
    change_graph(path, DECODER, INT8, change)
    assert re.match(sentence, failures(path)[0]), failures(path)


def test_a_change_is_a_failed_verdict(copied: Copied) -> None:
    path = copied()
    change_weight(path, DECODER, INT8, "layers.0.mlp.up.weight.integers", one_more)
    with pytest.raises(
        VerificationError,
        match=r"the int8 graphs are not what their quantization makes of the fp32 ones: audit: layers",
    ):
        judge_published(path, INT8, synthetic(24, 7), 1.0)
    verdict = Bundle.open(path).manifest.verification(INT8)
    assert verdict is not None and not verdict.passed
    judged = json.loads((path / verdict.report).read_text())["judged"]
    assert not judged["passed"] and judged["failures"][0].startswith("audit: layers.0.mlp.up.weight in ")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the record of a quantization, and the manifest with it."""
    entry = entry_of(path, DECODER, INT8)
    assert entry.calibration is not None
    file = path / entry.calibration.path
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))
    vouch(path)


def test_another_record_makes_another_graph(copied: Copied) -> None:
    path = copied()
    edit(path, lambda raw: raw["layers"].update({"decoder.layers.0.mlp.up": ["int8-weight", None]}))
    assert any("QuantizeLinear" in one or "MatMul" in one for one in failures(path))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda raw: raw.pop("limits"), "is not the record of a quantization; quantize it again"),
        (lambda raw: raw["limits"].clear(), "does not belong to its float graph .*decoder.layers.0"),
        (lambda raw: raw["layers"].update(other=["int8", None]), r"does not belong .*KeyError\('other'\)"),
        (lambda raw: raw["layers"].update({"decoder.lm_head": ["int4", None]}), "decoder.lm_head: a block of None"),
        (lambda raw: raw["factors"].update({next(iter(raw["factors"])): "AAAA"}), "does not belong"),
        (lambda raw: raw.update(floats="decoder:0:0"), "was made from another fp32 graph than the one there; quantize"),
    ],
)  # fmt: skip
def test_a_record_that_does_not_belong_is_refused(
    change: Callable[[dict[str, Any]], None], sentence: str, copied: Copied
) -> None:
    path = copied()
    edit(path, change)
    with pytest.raises(BundleError, match=sentence):
        audit(Bundle.open(path), INT8)


def test_the_record_is_what_a_verdict_is_about(copied: Copied) -> None:
    path = copied()
    before = entry_of(path, DECODER, INT8).identity
    edit(path, lambda raw: raw["importance"].clear())
    assert entry_of(path, DECODER, INT8).identity != before
    (path / "graphs/int8/decoder.calibration.json").unlink()
    with pytest.raises(BundleError, match=r"decoder\.calibration\.json is missing"):
        Bundle.open(path)
    assert (path / MANIFEST).exists()
