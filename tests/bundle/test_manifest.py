"""The manifest is read strictly: what it says is complete, typed, known and inside the bundle."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.conftest import GOLDEN
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry, Profile
from vlm_trt.bundle.errors import BundleError, IncompatibleError
from vlm_trt.bundle.manifest import SCHEMA, Manifest, Source, Verification, loads
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.families.qwen_vl.config import read_config


def graph(component: Component, precision: Precision = Precision.FP16, digest: str = "a") -> GraphEntry:
    path = f"graphs/{precision}/{component}"
    return GraphEntry(
        component, precision, 24, FileEntry(f"{path}.onnx", 10, digest * 64), FileEntry(f"{path}.weights", 20, "b" * 64)
    )


def manifest() -> Manifest:
    return Manifest(
        schema=SCHEMA,
        version="0.1.0",
        model=read_config(GOLDEN / "ntk-256" / "checkpoint"),
        limits=Limits(700, 2, 4),
        source=Source("/somewhere", {"config.json": "c" * 64}),
        tokenizer=FileEntry("tokenizer/qwen.tiktoken", 5, "d" * 64),
        graphs=tuple(graph(component) for component in Component),
    )


def verdict(of: Manifest) -> Verification:
    identities = tuple(sorted(entry.identity for entry in of.graphs))
    return Verification(
        Precision.FP16, "onnxruntime-cpu", True, "reports/x.json", identities, (), "2026-01-01", {"cosine": 1.0}
    )


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
    full = full.with_engines(tuple(engine(full, component) for component in Component))
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
    built = tuple(engine(full, component) for component in Component)
    judged = replace(verdict(full), engines=tuple(sorted(one.identity for one in built)))
    full = full.with_engines(built).with_verification(judged)
    assert full.verification(Precision.FP16, built) == judged
    assert full.verification(Precision.FP16) is None
    assert full.with_verification(verdict(full)).verifications == (judged, verdict(full))
    other = engine(full, Component.DECODER, digest="8")
    rebuilt = full.with_engines((other,))
    assert rebuilt.verifications == () and len(rebuilt.engines) == 3
    assert list(full.variants()) == ["rtx-sm89"]


def broken(change: Any) -> str:
    raw = json.loads(manifest().dumps())
    change(raw)
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda raw: raw.update(schema=99), IncompatibleError, f"has schema 99, this version reads {SCHEMA}"),
        (lambda raw: raw.pop("limits"), BundleError, "limits is missing"),
        (lambda raw: raw.update(extra=1), BundleError, "extra is unknown to this version"),
        (lambda raw: raw["limits"].update(max_batch="2"), BundleError, "limits.max_batch is '2', not of type int"),
        (lambda raw: raw["limits"].update(max_batch=True), BundleError, "limits.max_batch is True, not of type int"),
        (lambda raw: raw["limits"].update(max_batch=-1), BundleError, "limits.max_batch is -1, a negative number"),
        (lambda raw: raw["graphs"][0].update(precision="fp4"), BundleError, r"graphs\[0\].precision is 'fp4'"),
        (lambda raw: raw.update(graphs={}), BundleError, "graphs is not a list"),
        (lambda raw: raw["model"].update(vision=3), BundleError, "model.vision is not an object"),
        (lambda raw: raw["source"].update(files=[]), BundleError, "source.files is not an object"),
        (lambda raw: raw["tokenizer"].update(path="../../etc/passwd"), BundleError, "leaves the bundle; do not use"),
        (lambda raw: raw["graphs"][0]["weights"].update(path="/etc/passwd"), BundleError, "leaves the bundle"),
        (lambda raw: raw["tokenizer"].update(path=""), BundleError, "the path '' leaves the bundle"),
        (lambda raw: raw["tokenizer"].update(path="a\0b"), BundleError, "leaves the bundle"),
        (lambda raw: raw["tokenizer"].update(sha256="d" * 63), BundleError, "the sha256 of tokenizer/qwen.tiktoken is"),
        (lambda raw: raw["model"]["vision"].update(norm_eps=float("nan")), BundleError, "norm_eps is nan, no finite"),
        (lambda raw: raw["graphs"].append(raw["graphs"][0]), BundleError, "fp16 vision_encoder graph is there 2 times"),
        (lambda raw: raw["graphs"][0].update(graph=raw["graphs"][1]["graph"]), BundleError, "resampler.onnx' is there"),
    ],
)  # fmt: skip
def test_what_is_not_right_is_named(change: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        loads(broken(change), "bundle.json")


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
            loads(json.dumps(without), "bundle.json")
