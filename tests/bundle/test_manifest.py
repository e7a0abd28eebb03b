"""The manifest is read strictly: what it says is complete, typed, known and inside the bundle."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import GOLDEN
from tests.manifests import set_field
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry, Profile, Quantization
from vlm_trt.bundle.errors import BundleError, IncompatibleError
from vlm_trt.bundle.manifest import SCHEMA, SEAL, Manifest, Source, Verification, loads, sealed
from vlm_trt.bundle.precision import Precision
from vlm_trt.families.qwen_vl.config import read_config

MODEL = read_config(GOLDEN / "ntk-256" / "checkpoint")


def graph(component: Component, precision: Precision = Precision.FP16, digest: str = "a") -> GraphEntry:
    path = f"graphs/{precision}/{component}"
    weights = FileEntry(f"{path}.weights", 20, "b" * 64) if component.has_weights else None
    return GraphEntry(component, precision, 24, FileEntry(f"{path}.onnx", 10, digest * 64), weights)


def manifest() -> Manifest:
    return Manifest(
        schema=SCHEMA,
        version="0.1.0",
        model=MODEL,
        limits=Limits(700, 2, 4),
        source=Source("/somewhere", {"config.json": "c" * 64}),
        tokenizer=FileEntry("tokenizer/qwen.tiktoken", 5, "d" * 64),
        graphs=tuple(graph(component) for component in MODEL.components),
    )


def verdict(of: Manifest) -> Verification:
    return of.verdict(Precision.FP16, "onnxruntime-cpu", True, "reports/x.json", {"cosine": 1.0})


def engine(of: Manifest, component: Component, digest: str = "9") -> EngineEntry:
    entry = of.graph(component, Precision.FP16)
    assert entry is not None
    return EngineEntry(
        component=component, precision=Precision.FP16, backend="tensorrt-rtx", version="1.7.1", target="sm89", gpu=None,
        plan=FileEntry(f"engines/rtx-sm89/{component}.plan", 30, digest * 64), graph=entry.identity,
        limits=of.limits, profiles=(Profile("decode", {"input_ids": ((1, 2, 2), (1, 1, 1))}),), layers={"GATHER": 1},
        weights={"float16": 20}, weight_streaming=False, seconds=1.5, peak_ram_bytes=40, created="2026-01-01",
    )  # fmt: skip


def test_it_survives_a_round_trip() -> None:
    full = manifest().with_verification(verdict(manifest()))
    full = full.with_engines(tuple(engine(full, component) for component in MODEL.components))
    assert loads(full.dumps(), "bundle.json") == full


def test_a_verdict_counts_only_for_the_graphs_it_names() -> None:
    full = manifest().with_verification(verdict(manifest()))
    assert full.verification(Precision.FP16) is not None
    changed = replace(full, graphs=(graph(Component.DECODER, digest="e"), *full.graphs[:2]))
    assert changed.verification(Precision.FP16) is None
    assert full.with_graphs((graph(Component.DECODER, digest="e"),)).verifications == ()
    partial = full.without({(Component.DECODER, Precision.FP16)})
    assert partial.verification(Precision.FP16) is None


def test_an_engine_is_stale_when_its_graph_was_exported_again() -> None:
    full = manifest()
    built = engine(full, Component.DECODER)
    again = full.with_engines((built,)).with_graphs((graph(Component.DECODER, digest="e"),))
    assert not full.with_engines((built,)).is_stale(built)
    assert again.engines == (built,) and again.is_stale(built)


def test_a_verdict_on_engines_is_none_on_the_graphs_nor_on_other_engines() -> None:
    full = manifest()
    built = tuple(engine(full, component) for component in MODEL.components)
    judged = replace(verdict(full), engines=tuple(sorted(one.identity for one in built)))
    full = full.with_engines(built).with_verification(judged)
    assert full.verification(Precision.FP16, built) == judged
    assert full.verification(Precision.FP16) is None
    assert full.with_verification(verdict(full)).verifications == (judged, verdict(full))
    other = engine(full, Component.DECODER, digest="8")
    rebuilt = full.with_engines((other,))
    assert rebuilt.verifications == () and len(rebuilt.engines) == 4
    assert list(full.variants()) == ["rtx-sm89"]


def broken(change: Any) -> str:
    raw = json.loads(manifest().dumps())
    change(raw)
    return json.dumps(sealed(raw))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda raw: raw.update(schema=99), IncompatibleError, f"has schema 99, this version reads {SCHEMA}"),
        (lambda raw: raw.pop("limits"), BundleError, "limits is missing"),
        (lambda raw: raw.update(extra=1), BundleError, "extra is unknown to this version"),
        (lambda raw: raw["limits"].update(max_batch="2"), BundleError, "limits.max_batch is '2', not a whole number"),
        (lambda raw: raw["limits"].update(max_batch=True), BundleError, "limits.max_batch is True, not a whole number"),
        (lambda raw: raw["limits"].update(max_batch=-1), BundleError, "limits.max_batch is -1, not a whole number"),
        (lambda raw: raw["graphs"][0].update(precision="fp4"), BundleError, r"graphs\[0\].precision is 'fp4'"),
        (lambda raw: raw.update(graphs={}), BundleError, "graphs is not a list"),
        (lambda raw: raw["model"].update(vision=3), BundleError, "model.vision is not an object"),
        (lambda raw: raw["source"].update(files=[]), BundleError, "source.files is not an object"),
        (lambda raw: raw["tokenizer"].update(path="../../etc/passwd"), BundleError, "leaves the bundle; do not use"),
        (lambda raw: raw["graphs"][0]["weights"].update(path="/etc/passwd"), BundleError, "leaves the bundle"),
        (lambda raw: raw["tokenizer"].update(path=""), BundleError, "the path '' leaves the bundle"),
        (lambda raw: raw["tokenizer"].update(path="a\0b"), BundleError, "leaves the bundle"),
        (lambda raw: raw["tokenizer"].update(sha256="d" * 63), BundleError, "the sha256 of tokenizer/qwen.tiktoken is"),
        (lambda raw: raw["model"]["vision"].update(norm_eps=float("nan")), BundleError, "norm_eps is nan, not a num"),
        (lambda raw: raw["graphs"].append(raw["graphs"][0]), BundleError, "fp16 vision_encoder graph is there 2 times"),
        (lambda raw: raw["graphs"][0].update(graph=raw["graphs"][1]["graph"]), BundleError, "resampler.onnx' is there"),
        (lambda raw: raw["graphs"][2].update(weights=None), BundleError, "weights of the fp16 decoder graph are miss"),
        (lambda raw: raw["graphs"][3].update(weights=raw["graphs"][2]["weights"]), BundleError,
         "the weights of the fp16 sampler graph are there, and it has none"),
    ],
)  # fmt: skip
def test_what_is_not_right_is_named(change: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        loads(broken(change), "bundle.json")


ABSURD = [0, -1, 10**30, 10**400, 1e308, float("nan"), float("inf"), True, "1", None, [1]]


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: str(value)[:8])
@pytest.mark.parametrize(
    "field",
    [
        "model.vision.image_size", "model.vision.heads", "model.vision.layers", "model.vision.patch_size",
        "model.vision.norm_eps", "model.connector.tokens", "model.connector.heads", "model.decoder.layers",
        "model.decoder.block.heads", "model.decoder.rope_base", "model.decoder.trained_tokens",
        "model.decoder.vocab_size",
        "model.generation.temperature", "model.generation.repetition_penalty", "limits.max_seq_tokens",
        "limits.max_batch", "limits.max_images",
    ],
)  # fmt: skip
def test_every_number_has_a_range(field: str, value: Any) -> None:
    with pytest.raises(BundleError, match=rf"{field} is .*, not a (whole )?number from \S+ to \S+; export"):
        loads(broken(lambda raw: set_field(raw, field, value)), "bundle.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.decoder.rope_base", 90000.0),
        ("model.decoder.dynamic_ntk", False),
        ("model.generation.chat_format", "raw"),
        ("limits.max_batch", 3),
        ("version", "0.1.1"),
    ],
)
def test_a_manifest_that_was_edited_is_told_by_its_own_hash(field: str, value: Any) -> None:
    raw = json.loads(manifest().dumps())
    set_field(raw, field, value)
    sentence = "bundle.json is not as it was written .*: it is damaged, or was edited by hand; bring the original back"
    with pytest.raises(BundleError, match=sentence):
        loads(json.dumps(raw), "bundle.json")


def test_how_the_text_is_laid_out_does_not_matter() -> None:
    raw = json.loads(manifest().dumps())
    assert loads(json.dumps(dict(sorted(raw.items()))), "bundle.json") == manifest()


def test_a_manifest_of_an_older_schema_has_no_hash_and_is_told_by_its_schema() -> None:
    raw = {**json.loads(manifest().dumps()), "schema": 2}
    del raw[SEAL]
    with pytest.raises(IncompatibleError, match=f"has schema 2, this version reads {SCHEMA}; export the checkpoint"):
        loads(json.dumps(raw), "bundle.json")


def test_a_key_that_stands_twice_is_refused() -> None:
    text = manifest().dumps().replace('"rope_base"', '"rope_base": 1.0, "rope_base"')
    with pytest.raises(BundleError, match=r"is not JSON \(the key 'rope_base' stands twice\)"):
        loads(text, "bundle.json")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda m: replace(m, limits=replace(m.limits, max_batch=3)), "limits"),
        (lambda m: replace(m, model=replace(m.model, decoder=replace(m.model.decoder, rope_base=2e4))), "model"),
        (lambda m: replace(m, tokenizer=replace(m.tokenizer, sha256="e" * 64)), "tokenizer"),
        (lambda m: replace(m, graphs=(graph(Component.DECODER, digest="e"), *m.graphs[:2])), "graphs"),
        (lambda m: replace(m, quantizations=(made(m),)), "quantization"),
    ],
    ids=["limits", "model", "tokenizer", "graphs", "quantization"],
)
def test_a_verdict_is_void_when_anything_it_names_has_changed(change: Any, part: str) -> None:
    full = manifest().with_verification(verdict(manifest()))
    assert full.verification(Precision.FP16) is not None and full.outdated(Precision.FP16) == ()
    changed = change(full)
    assert changed.verification(Precision.FP16) is None
    assert changed.outdated(Precision.FP16) == (part,)


def made(of: Manifest, max_drop: float = 0.01) -> Quantization:
    return Quantization(Precision.FP16, of.identities(Precision.FP16), max_drop, None, ())


@pytest.mark.parametrize("drop", [float("nan"), float("inf"), 1e9, -0.1, True, "0.1"])
def test_the_drop_that_is_allowed_is_a_share(drop: Any) -> None:
    raw = json.loads(replace(manifest(), quantizations=(made(manifest()),)).dumps())
    raw["quantizations"][0]["max_drop"] = drop
    with pytest.raises(BundleError, match=r"quantizations\[0\].max_drop is .*, not a number from 0 to 1"):
        loads(json.dumps(sealed(raw)), "bundle.json")


def test_how_graphs_were_made_goes_with_them() -> None:
    int8 = tuple(graph(component, Precision.INT8) for component in MODEL.components)
    entry = replace(made(manifest()), precision=Precision.INT8)
    full = manifest().with_graphs(int8, entry)
    assert full.quantization(Precision.INT8) == entry and loads(full.dumps(), "bundle.json") == full
    assert full.with_graphs((graph(Component.DECODER, digest="e"),)).quantization(Precision.INT8) == entry
    assert full.without({(Component.DECODER, Precision.INT8)}).quantizations == ()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 200_000])
def test_what_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises((BundleError, IncompatibleError), match=r"bundle\.json"):
        loads(text, "bundle.json")


def test_a_passed_verdict_cannot_hide_a_failed_one() -> None:
    passed = verdict(manifest())
    both = replace(manifest(), verifications=(passed, replace(passed, passed=False)))
    with pytest.raises(BundleError, match="the verdict on fp16 is there 2 times; export the checkpoint again"):
        loads(both.dumps(), "bundle.json")


def test_a_report_outside_the_bundle_is_refused() -> None:
    leaving = replace(verdict(manifest()), report="../../report.json")
    with pytest.raises(BundleError, match=r"the path '\.\./\.\./report\.json' leaves the bundle"):
        loads(manifest().with_verification(leaving).dumps(), "bundle.json")


def test_a_failed_verdict_may_report_infinite_figures() -> None:
    """A graph that computes NaN is recorded as failed; the bundle must still open."""
    failed = replace(verdict(manifest()), passed=False, figures={"relative": float("inf"), "cosine": 0.0})
    full = manifest().with_verification(failed)
    assert loads(full.dumps(), "bundle.json") == full


def test_every_field_of_the_file_is_required() -> None:
    """No field has a default in the file: removing any one is noticed."""
    raw = json.loads(manifest().dumps())
    for name in raw:
        if name == "schema":
            continue
        without = copy.deepcopy(raw)
        del without[name]
        with pytest.raises(BundleError, match=f"{name} is missing"):
            loads(json.dumps(without if name == SEAL else sealed(without)), "bundle.json")
