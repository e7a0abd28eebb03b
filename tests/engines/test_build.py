"""Real engines: the three graphs of every golden variant build with TensorRT-RTX, with the profiles of the design."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from bundle.errors import IncompatibleError, UnsupportedError
from bundle.signature import Component, Precision
from bundle.store import Bundle
from engines.build import build_engine
from engines.profiles import profiles
from tests.conftest import OWN_VARIANTS, SHARED_VARIANTS


@pytest.mark.parametrize("variant", (*OWN_VARIANTS, *SHARED_VARIANTS))
def test_every_golden_variant_builds_in_fp16(variant: str, exported: Callable[..., Path]) -> None:
    build_all(exported(variant, "fp16"), Precision.FP16)


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_the_other_precisions_build(precision: Precision, exported: Callable[..., Path]) -> None:
    build_all(exported("ntk-256", precision), precision)


def build_all(path: Path, precision: Precision) -> None:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    for component in Component:
        entry = manifest.graph(component, precision)
        assert entry is not None
        shapes = profiles(component, manifest.model, manifest.limits, precision)
        engine = build_engine(path / entry.graph.path, shapes, "sm89")
        assert len(engine) > entry.weights.size // 2  # it carries the weights


def test_the_decoders_profiles_are_the_designs(exported: Callable[..., Path]) -> None:
    manifest = Bundle.open(exported("ntk-256", "fp16")).manifest
    decode, prefill = profiles(Component.DECODER, manifest.model, manifest.limits, Precision.FP16)
    longest, batch = manifest.limits.max_seq_tokens, manifest.limits.max_batch
    assert decode.shapes["input_ids"] == ((1, batch, batch), (1, 1, 1))
    assert decode.shapes["kv_positions"] == ((longest, longest, longest),)
    assert prefill.shapes["input_ids"] == ((1, 1, 1), (1, 512, longest))
    assert prefill.corner("past_key_values.0.key", 2) == (1, 4, longest, 32)
    assert prefill.corner("image_features", 2)[0] == 512  # two pictures fit 700 positions


def test_an_input_that_the_parser_drops_is_an_error(exported: Callable[..., Path], tmp_path: Path) -> None:
    """The parser only warns of it; a binding without effect would be wrong output in silence."""
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    entry = bundle.manifest.graph(Component.RESAMPLER, Precision.FP16)
    assert entry is not None
    model = onnx.load(bundle.path / entry.graph.path)
    node = next(node for node in model.graph.node if node.op_type == "Attention")
    node.input.extend(["", "", "", "lengths"])  # nonpad_kv_seqlen
    model.graph.input.append(onnx.helper.make_tensor_value_info("lengths", onnx.TensorProto.INT64, ["images"]))
    onnx.save(model, tmp_path / "broken.onnx")
    (known,) = profiles(Component.RESAMPLER, bundle.manifest.model, bundle.manifest.limits, Precision.FP16)
    with pytest.raises(UnsupportedError, match="an input 'lengths' that its contract does not know"):
        build_engine(tmp_path / "broken.onnx", (known,), "sm89")
    told = replace(known, shapes={**known.shapes, "lengths": ((1, 1, 4),)})
    with pytest.raises(UnsupportedError, match=r"broken\.onnx (does not (parse|build)|built with complaints).*"):
        build_engine(tmp_path / "broken.onnx", (told,), "sm89")


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"garbage")
    with pytest.raises(UnsupportedError, match=r"x\.onnx does not parse in tensorrt-rtx"):
        build_engine(tmp_path / "x.onnx", (), "sm89")


def test_a_target_that_cannot_be_built_here(exported: Callable[..., Path]) -> None:
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    entry = bundle.manifest.graphs[0]
    with pytest.raises(IncompatibleError, match="cannot build for sm90 from here; build on that GPU"):
        build_engine(bundle.path / entry.graph.path, (), "sm90")


def test_a_backend_that_is_not_installed(tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401

        pytest.skip("tensorrt is installed here, so its absence cannot be tested")
    except ImportError:
        pass
    with pytest.raises(IncompatibleError, match=r"tensorrt cannot be imported .* pip install 'vlm-trt\[tensorrt\]'"):
        build_engine(tmp_path / "x.onnx", (), "native", "tensorrt")
