"""Real engines of single graphs, built with TensorRT-RTX, and what the builder refuses."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tests.sampler_graph import LIMITS, MAX_BATCH, graph_of, model_of
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import IncompatibleError, StorageError, UnsupportedError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.bundle.tensorrt import load_backend, logger_of
from vlm_trt.engines.backend import Device, default_backend, require_target
from vlm_trt.engines.builder import BuildOptions, _configure, build_engine
from vlm_trt.engines.inspect_plan import Expected, inspect_plan
from vlm_trt.engines.profiles import profiles
from vlm_trt.engines.timing_cache import TimingCache, require_writable

SM89 = BuildOptions("tensorrt-rtx", "sm89")


def test_the_decoders_profiles_are_the_designs(exported: Callable[..., Path]) -> None:
    manifest = Bundle.open(exported("ntk-256", "fp16")).manifest
    decode, prefill, check = profiles(Component.DECODER, manifest.model, manifest.limits, Precision.FP16)
    longest, batch = manifest.limits.max_seq_tokens, manifest.limits.max_batch
    assert decode.shapes["input_ids"] == ((1, batch, batch), (1, 1, 1))
    assert decode.shapes["kv_positions"] == ((longest, longest, longest),)
    assert prefill.shapes["input_ids"] == ((1, 1, 1), (1, 512, longest))
    assert (decode.shapes["logits_index"], prefill.shapes["logits_index"]) == (((1, batch, batch),), ((1, 1, 1),))
    assert check.shapes["input_ids"] == ((1, 1, 1), (2, 8, 8)) and check.shapes["logits_index"] == ((2, 8, 8),)
    assert check.shapes["kv_positions"] == prefill.shapes["kv_positions"]
    assert prefill.corner("past_key_values.0.key", 2) == (1, 4, longest, 32)
    assert prefill.corner("image_features", 2)[0] == 512  # two pictures fit 700 positions


def test_the_sampler_takes_every_row_and_edit_in_one_profile(tmp_path: Path) -> None:
    """At the official vocabulary, where chunks are selected first; the longest sequence may have seen as many ids."""
    model = model_of(151_936)
    (rows,) = profiles(Component.SAMPLER, model, LIMITS, Precision.FP16)
    assert rows.shapes["logits"] == ((1, MAX_BATCH, MAX_BATCH), (151_936, 151_936, 151_936))
    assert rows.shapes["edited_ids"] == ((1, MAX_BATCH, MAX_BATCH), (1, 1, 1024))
    (tmp_path / "sampler.onnx").write_bytes(graph_of(151_936))
    for target in ("sm80", "sm120"):
        options = BuildOptions("tensorrt-rtx", target)
        built = build_engine(tmp_path / "sampler.onnx", (rows,), tmp_path / target, options)
        assert built.layers["TOPK"] == 3 and built.layers["CUMULATIVE"] == 2 and built.layers["SOFTMAX"] == 2
    expected = Expected(Component.SAMPLER, Precision.FP16, model, LIMITS, (rows,))
    assert inspect_plan(tmp_path / "sm120", expected).findings == ()


def test_products_in_fp32_are_not_rounded_to_tf32() -> None:
    trt = load_backend("tensorrt-rtx")
    config = trt.Builder(logger_of(trt).instance).create_builder_config()
    assert config.get_flag(trt.BuilderFlag.TF32), "TensorRT's own default has changed: is the flag still needed?"
    _configure(trt, config, SM89, lambda _: None)
    assert not config.get_flag(trt.BuilderFlag.TF32)


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
        build_engine(tmp_path / "broken.onnx", (known,), tmp_path / "plan", SM89)
    told = replace(known, shapes={**known.shapes, "lengths": ((1, 1, 4),)})
    with pytest.raises(UnsupportedError, match=r"broken\.onnx (does not (parse|build)|built with complaints).*"):
        build_engine(tmp_path / "broken.onnx", (told,), tmp_path / "plan", SM89)


def test_what_the_parser_made_of_a_graph_is_looked_at(exported: Callable[..., Path], tmp_path: Path) -> None:
    """Past the lint: an axis that got fixed, a cache that is written by something else than an update in place."""
    path = exported("ntk-256", "fp16")
    manifest = Bundle.open(path).manifest
    shapes = profiles(Component.DECODER, manifest.model, manifest.limits, Precision.FP16)
    folder = tmp_path / "graphs"
    shutil.copytree(path / "graphs" / "fp16", folder)
    for change, words in (
        (fix_batch, r"axis 0 of \w+ is fixed to 1 in the network, and has to take 1…3"),
        (concatenate_cache, "has 4 caches and the network updates 3 of them in place"),
    ):
        model = onnx.load(path / "graphs/fp16/decoder.onnx", load_external_data=False)
        change(model)
        (folder / "decoder.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(UnsupportedError, match=words):
            build_engine(folder / "decoder.onnx", shapes, tmp_path / "plan", SM89)


def fix_batch(model: onnx.ModelProto) -> None:
    for value in model.graph.input:
        if value.name == "write_index":
            value.type.tensor_type.shape.dim[0].dim_value = 1


def concatenate_cache(model: onnx.ModelProto) -> None:
    """The last cache is passed on as it is, where it should be written."""
    scatter = [node for node in model.graph.node if node.op_type == "TensorScatter"][-1]
    past, present = scatter.input[0], scatter.output[0]
    del scatter.input[:], scatter.attribute[:]
    scatter.op_type = "Identity"
    scatter.input.append(past)
    assert scatter.output[0] == present


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"garbage")
    with pytest.raises(UnsupportedError, match=r"x\.onnx does not parse in tensorrt-rtx"):
        build_engine(tmp_path / "x.onnx", (), tmp_path / "plan", SM89)


def test_a_target_that_cannot_be_built_here() -> None:
    trt = load_backend("tensorrt-rtx")
    with pytest.raises(IncompatibleError, match=r"build for sm90 from here \(it builds for sm75, sm80, .* build"):
        require_target(trt, "tensorrt-rtx", "sm90", None)
    with pytest.raises(IncompatibleError, match="none answers here; name one, --target sm75,sm80"):
        require_target(trt, "tensorrt-rtx", "native", None)
    there = Device("sm90", "H100, driver 580")
    assert require_target(trt, "tensorrt-rtx", "native", there) == "sm90"
    assert require_target(trt, "tensorrt-rtx", "sm90", there) == "sm90"


def test_a_backend_that_is_not_installed(tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401

        pytest.skip("tensorrt is installed here, so its absence cannot be tested")
    except ImportError:
        pass
    with pytest.raises(IncompatibleError, match=r"tensorrt cannot be imported .* install it: pip install 'tensorrt>="):
        build_engine(tmp_path / "x.onnx", (), tmp_path / "plan", BuildOptions("tensorrt", "sm89"))
    assert default_backend() == "tensorrt-rtx"


def test_a_disk_that_fills_up_is_a_sentence(exported: Callable[..., Path]) -> None:
    """The exception comes out of the writer, and not through the builder, which would not survive it."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a device that is always full")
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    entry = bundle.manifest.graph(Component.RESAMPLER, Precision.FP16)
    assert entry is not None
    shapes = profiles(Component.RESAMPLER, bundle.manifest.model, bundle.manifest.limits, Precision.FP16)
    with pytest.raises(StorageError, match="the disk is full"):
        build_engine(bundle.path / entry.graph.path, shapes, Path("/dev/full"), SM89)


def test_how_far_a_build_is_only_grows_and_ends_near_the_whole(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Bundle.open(exported("ntk-256", "fp16"))
    entry = bundle.manifest.graph(Component.RESAMPLER, Precision.FP16)
    assert entry is not None
    shapes = profiles(Component.RESAMPLER, bundle.manifest.model, bundle.manifest.limits, Precision.FP16)
    reached: list[float] = []
    built = build_engine(bundle.path / entry.graph.path, shapes, tmp_path / "plan", SM89, reached.append)
    assert reached == sorted(reached) and len(reached) > 5 and 0.5 < reached[-1] <= 1
    assert (built.size, built.sha256) == ((tmp_path / "plan").stat().st_size, sha256_of(tmp_path / "plan"))
    assert built.layers["ATTENTION_INPUT"] == 1 and built.weights["half"] > 0.9 * entry.weight_bytes


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # TensorRT-RTX keeps the calls, and does nothing in them
def test_timings_are_stored_whole_and_damaged_ones_replaced(tmp_path: Path) -> None:
    trt = load_backend("tensorrt-rtx")
    config = trt.Builder(logger_of(trt).instance).create_builder_config()
    path = tmp_path / "cache" / "timings"
    require_writable(path)
    for content in (None, b"", b"garbage"):
        if content is not None:
            path.write_bytes(content)
        cache = TimingCache(config, path)
        cache.load()
        cache.store()
        assert path.stat().st_size > 100
        assert [file.name for file in path.parent.iterdir()] == ["timings"]


def test_a_timing_cache_that_cannot_be_written_is_said_before_the_build(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"writing .*file/timings: .*choose a folder you may write"):
        require_writable(tmp_path / "file" / "timings")
    with pytest.raises(StorageError, match="the timing cache .* is no file; choose another with --timing-cache"):
        require_writable(tmp_path)
