"""The gate: good graphs pass, wrong ones are refused, and what was not shown equal is not used."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import GOLDEN
from tests.exporter.checkpoints import loud, single
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.entries import FileEntry, GraphEntry
from vlm_trt.bundle.errors import BundleError, ResourceError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.export import Choices, export
from vlm_trt.families.family import family
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.verification.asked import asked
from vlm_trt.verification.checks import check_decoder, features_of
from vlm_trt.verification.expected import expect
from vlm_trt.verification.figures import TOLERANCES, compare, failure
from vlm_trt.verification.memory import needed_bytes, require_memory
from vlm_trt.verification.passages import WHOLE, Extent
from vlm_trt.verification.streamed import StreamedReference, values_of
from vlm_trt.verification.trial import Trial, vision_runs
from vlm_trt.verification.verify import verify


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("variant", ["ntk-256", "image-224", "no-ntk-no-logn"])
def test_good_graphs_pass(variant: str, precision: str, copied: Callable[..., Path]) -> None:
    path = copied(variant, precision)
    report = verify(path, precision=precision, backend_name="cpu")
    assert report.passed, report.failures
    stages = {one.stage for one in report.figures}
    decoding = {"prefill", "chunked_prefill", "decode_step", "check", "batch"}
    assert stages == {"vision_encoder", "resampler", *decoding, "sampler"}
    labels = {"fp32": [""], "fp16": [" rounded as stored", ""], "bf16": [" rounded as stored"]}[precision]
    agreed = [note for note in report.notes if "next tokens agree" in note]
    assert len(agreed) == len(labels)  # fp16: as it is stored, and as it runs here
    least = {"fp32": 59, "fp16": 57, "bf16": 53}[precision]  # of random weights, whose logits lie close together
    assert all(least <= int(note.split()[0]) <= 59 and " of 59 next tokens" in note for note in agreed), agreed
    assert any("swapping the picture changes the logits" in note for note in report.notes)
    verdict = Bundle.open(path).manifest.verification(Precision(precision))
    assert verdict is not None and verdict.passed
    written = json.loads((path / verdict.report).read_text())
    assert len(written["figures"]) == len(report.figures)
    if precision == "fp16":
        print(f"{variant}: {report.worst()}; {report.notes}")
        assert report.worst()["cosine"] >= 0.9999


def damaged(source: Path, target: Path, component: Component, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a bundle whose graph computes something else, and whose manifest vouches for that."""
    shutil.copytree(source, target)
    bundle = Bundle.open(target)
    entry = bundle.manifest.graph(component, Precision.FP32)
    assert entry is not None
    path = target / entry.graph.path
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    new = GraphEntry(
        component,
        Precision.FP32,
        entry.opset,
        FileEntry(entry.graph.path, path.stat().st_size, sha256_of(path)),
        entry.weights,
    )
    (target / MANIFEST).write_text(bundle.manifest.with_graphs((new,)).dumps())
    return target


def attribute(model: onnx.ModelProto, operator: str, name: str, value: float, which: int = 0) -> None:
    node = [node for node in model.graph.node if node.op_type == operator][which]
    (found,) = [a for a in node.attribute if a.name == name]
    found.f = value


def swap_gate_and_up(model: onnx.ModelProto) -> None:
    """The classic mistake: the first projection gated instead of the second."""
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name.startswith("layers.0.mlp.gate"):
                node.input[i] = name.replace("gate", "up")
            elif name.startswith("layers.0.mlp.up"):
                node.input[i] = name.replace("up", "gate")


def ignore_pictures(model: onnx.ModelProto) -> None:
    """Every position takes its token's embedding: a deployment that is blind and fluent."""
    node = next(node for node in model.graph.node if node.op_type == "Where")
    node.input[1] = node.input[2]


def no_query_scale(model: onnx.ModelProto) -> None:
    """log-n attention left out: nothing shows below the training length."""
    scaled = [node for node in model.graph.node if node.op_type == "Mul" and any("unsqueeze" in i for i in node.input)]
    assert scaled
    for node in scaled:
        (other,) = [name for name in node.input if "unsqueeze" not in name]
        for user in model.graph.node:
            for i, name in enumerate(user.input):
                if name == node.output[0]:
                    user.input[i] = other


@pytest.mark.parametrize(
    ("component", "change", "sentence"),
    [
        (Component.DECODER, lambda m: attribute(m, "Attention", "scale", 0.2), "prefill of one_image: "),
        (Component.DECODER, lambda m: attribute(m, "RMSNormalization", "epsilon", 1e-2), "prefill of one_image: "),
        (Component.DECODER, swap_gate_and_up, "prefill of one_image: "),
        (Component.DECODER, ignore_pictures, "image_swap: swapping the picture changes the logits by 0.0%"),
        (Component.DECODER, no_query_scale, "prefill of to_the_last_position, run "),
        (
            Component.VISION_ENCODER,
            lambda m: attribute(m, "Attention", "scale", 0.2, 1),
            "vision_encoder of picture 1 of 1: ",
        ),
        (Component.RESAMPLER, lambda m: attribute(m, "Attention", "scale", 0.08), "resampler of picture 1 of 1: "),
    ],
    ids=["scale", "epsilon", "gate", "blind", "logn", "vision-scale", "resampler-scale"],
)
def test_a_graph_that_computes_something_else_is_refused(
    component: Component,
    change: Callable[[onnx.ModelProto], None],
    sentence: str,
    exported: Callable[..., Path],
    tmp_path: Path,
) -> None:
    path = damaged(exported("ntk-256"), tmp_path / "bundle", component, change)
    report = verify(path, precision="fp32", backend_name="cpu")
    assert not report.passed
    assert any(line.startswith(sentence) for line in report.failures), report.failures
    with pytest.raises(VerificationError, match="fp32 graphs failed verification, so their answers cannot"):
        load(path, backend="cpu")
    load(path, backend="cpu", allow_unverified=True)


def refer_elsewhere(model: onnx.ModelProto, key: str, value: str) -> None:
    """Moves the reference of the first external weight."""
    tensor = next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)
    (entry,) = [entry for entry in tensor.external_data if entry.key == key]
    entry.value = value


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("location", "../../../outside", "lies at '../../../outside', outside the graph's folder; do not use"),
        ("location", "vision_encoder.weights", "takes weights from vision_encoder.weights, which the manifest does"),
        ("offset", str(1 << 40), r"is at bytes 1099511627776….* of .*resampler\.weights, which has"),
        ("length", "4", "has 4 bytes, its type and shape need"),
    ],
)
def test_a_graph_that_takes_its_weights_from_elsewhere_is_not_even_loaded(
    key: str,
    value: str,
    sentence: str,
    exported: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(model: onnx.ModelProto) -> None:
        refer_elsewhere(model, key, value)

    path = damaged(exported("image-224"), tmp_path / "bundle", Component.RESAMPLER, change)
    monkeypatch.setattr("vlm_trt.verification.verify.open_engine", lambda *_: pytest.fail("the graph was loaded"))
    with pytest.raises(BundleError, match=sentence):
        verify(path, precision="fp32", backend_name="cpu")
    assert Bundle.open(path).manifest.verification(Precision.FP32) is None


@pytest.mark.parametrize("extent", [WHOLE, Extent(5, 2, (1, 24, 5, 37))])
def test_a_chain_that_sees_another_picture_fails(extent: Extent, exported: Callable[..., Path]) -> None:
    """As a wrong order of pictures between the graphs would; also where a prompt holds some rows of its picture."""
    bundle, kind = Bundle.open(exported("ntk-256")), family("qwen_vl")
    manifest, tolerance = bundle.manifest, TOLERANCES[Precision.FP32]
    tokenizer = kind.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    checkpoint = Checkpoint(GOLDEN / "ntk-256" / "checkpoint")
    passages, pixels = asked(kind, tokenizer, manifest.model, manifest.limits, extent)
    last = manifest.model.tile_tokens - 1
    rows = [int(row) for row in passages[0].rows if row >= 0]
    assert rows[0] == 0 and rows[-1] == last and len(rows) == min(extent.picture_rows, last + 1)
    reference = StreamedReference(values_of(checkpoint, manifest.model), manifest.model, kind, lambda _: None)
    expected = expect(reference, passages[:1], pixels)
    trial = Trial(open_engine(bundle, Precision.FP32, CpuBackend(threads=1)), kind)
    features = features_of(list(trial.vision(pixels, vision_runs(manifest.limits.max_images, pixels))))
    assert check_decoder(trial.decoder(passages[:1], features), expected, "", tolerance).failures == ()
    failures = check_decoder(trial.decoder(passages[:1], features[::-1]), expected, "", tolerance).failures
    assert failures and failures[0].startswith("prefill of one_image: relative difference")


def test_a_bundle_that_takes_one_picture_at_a_time_is_verified(tmp_path: Path) -> None:
    choices = Choices(Precision.FP32, max_seq_tokens=700, max_batch=1, max_images=1)
    export(GOLDEN / "image-224" / "checkpoint", tmp_path / "bundle", choices)
    report = verify(tmp_path / "bundle", backend_name="cpu")
    pictures = [one.sample for one in report.figures if one.stage == "vision_encoder"]
    assert report.passed and pictures == ["picture 1 of 1"] * 3


def test_unverified_graphs_are_not_used(exported: Callable[..., Path]) -> None:
    path = exported("image-224")
    with pytest.raises(
        VerificationError, match=r"not verified.*`vlm-trt verify .* --precision fp32`, or .*--unverified"
    ):
        load(path, backend="cpu")


def test_a_verdict_does_not_outlive_its_graphs(verified: Callable[..., Path], tmp_path: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.doc_string = "changed"

    path = damaged(verified("image-224"), tmp_path / "bundle", Component.RESAMPLER, rename)
    with pytest.raises(VerificationError, match="not verified"):
        load(path, backend="cpu")


def test_another_checkpoint_is_not_compared_with(exported: Callable[..., Path]) -> None:
    with pytest.raises(VerificationError, match="is not the checkpoint this bundle was exported from: config.json"):
        verify(exported("ntk-256"), against=GOLDEN / "image-224" / "checkpoint", backend_name="cpu")


def test_changed_weights_under_the_same_sizes_do_not_pass(copied: Callable[..., Path], tmp_path: Path) -> None:
    """A fine-tuned checkpoint has the same config and file sizes: the comparison itself must tell."""
    path = copied("image-224")
    other = single(tmp_path / "other", lambda t: t.update({"lm_head.weight": t["lm_head.weight"].flip(0)}))
    report = verify(path, against=other, precision="fp32", backend_name="cpu")
    assert not report.passed


def test_a_checkpoint_that_is_gone_is_named(exported: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="is not there, so there is nothing to compare with; .* --against"):
        verify(exported("ntk-256"), against=tmp_path / "gone", backend_name="cpu")


def test_a_value_beyond_fp16_fails_although_the_cpu_computes_on(tmp_path: Path) -> None:
    """ONNX Runtime rounds few values here; on a GPU this model answers with NaN."""
    export(loud(tmp_path / "loud"), tmp_path / "bundle", Choices(Precision.FP16))
    report = verify(tmp_path / "bundle", precision="fp16", backend_name="cpu")
    assert not report.passed
    assert "prefill of one_image rounded as stored: not all values are finite" in report.failures
    assert all("rounded as stored" in sentence for sentence in report.failures)
    with pytest.raises(VerificationError, match="fp16 graphs failed verification"):
        load(tmp_path / "bundle", precision="fp16", backend="cpu")


def test_a_flipped_byte_is_refused_before_it_is_run(verified: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(verified("image-224"), path)
    weights = path / "graphs/fp32/decoder.weights"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 64
    weights.write_bytes(bytes(data))
    for allow in (False, True):
        with pytest.raises(BundleError, match=r"decoder\.weights was changed after it was made"):
            load(path, backend="cpu", allow_unverified=allow)


def test_not_a_number_never_passes() -> None:
    good = np.ones(4, dtype=np.float32)
    bad = np.array([1, 1, 1, np.nan], dtype=np.float32)
    for one, other in ((good, bad), (bad, good), (bad, bad)):
        for tolerance in TOLERANCES.values():
            assert failure(compare("x", "y", one, other), tolerance) is not None
    assert failure(compare("x", "y", good, good), TOLERANCES[Precision.FP32]) is None


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(exported: Callable[..., Path]) -> None:
    """The official shape at 1,000 times its width would need more than any host has for its largest table."""
    manifest = Bundle.open(exported("ntk-256")).manifest
    vast = replace(manifest.model, decoder=replace(manifest.model.decoder, hidden=4_096_000, vocab_size=151_936_000))
    with pytest.raises(ResourceError, match=r"verifying needs about \d+\.\d GiB of memory .* a host with more"):
        require_memory(family("qwen_vl"), vast, manifest.limits, Precision.FP32)
    require_memory(family("qwen_vl"), manifest.model, manifest.limits, Precision.FP16)
    assert needed_bytes(family("qwen_vl"), manifest.model, manifest.limits, Precision.FP16) > 6 * 1_700_000
