"""Which engines of a bundle run on a machine, and what is said where none does."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import variant_folder
from tests.host_engines import add_engines, host_backend
from tests.manifests import edit_manifest
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.errors import IncompatibleError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle, file_entry
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import read_recipe
from vlm_trt.runtime import backends
from vlm_trt.runtime.backends import choose_precision
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.load import require_verified
from vlm_trt.runtime.variants import fitting_engines
from vlm_trt.verification.verify import verify

HERE = ("tensorrt-rtx", "1.0", "sm89")


@pytest.fixture
def bundle(copied: Callable[..., Path]) -> Path:
    return copied("ntk-256")


def fitting(bundle: Path) -> str:
    return fitting_engines(Bundle.open(bundle), Precision.FP32, *HERE)[0].variant


def test_of_several_the_one_that_takes_most(bundle: Path) -> None:
    add_engines(bundle, max_batch=2)
    add_engines(bundle, max_batch=3)
    add_engines(bundle, max_batch=1)
    assert fitting(bundle).endswith("-3")


def test_a_verified_one_comes_first(bundle: Path) -> None:
    add_engines(bundle, max_batch=3)
    small = add_engines(bundle, max_batch=2)
    opened = Bundle.open(bundle)
    verdict = opened.manifest.verdict(Precision.FP32, "tensorrt-rtx", True, "reports/a.json", {}, small)
    opened.record(verdict, "{}")
    assert fitting(bundle).endswith("-2")


def test_none_is_a_table_of_reasons_and_a_command(bundle: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"it has no fp32 engines\.\nBuild it here with: vlm-trt build \S"):
        fitting(bundle)
    add_engines(bundle, backend="tensorrt")
    add_engines(bundle, version="0.9")
    add_engines(bundle, target="sm80")
    add_engines(bundle, max_batch=1, components=(Component.DECODER, Component.RESAMPLER))
    with pytest.raises(IncompatibleError) as caught:
        fitting(bundle)
    head, *table, command = str(caught.value).splitlines()
    assert head.endswith("no fp32 engine runs on tensorrt-rtx 1.0 with sm89; its engines:")
    assert table == [
        "  tensorrt-1.0-sm89-fp32-3: built for tensorrt, and tensorrt-rtx is asked for",
        "  tensorrt-rtx-0.9-sm89-fp32-3: built with tensorrt-rtx 0.9, and 1.0 is installed",
        "  tensorrt-rtx-1.0-sm80-fp32-3: built for sm80, and the GPU is sm89",
        "  tensorrt-rtx-1.0-sm89-fp32-1: has no sampler, vision_encoder",
    ]
    assert command == (
        f"Build it here with: vlm-trt build {bundle} --backend tensorrt-rtx --precision fp32 --target native"
    )


def test_engines_of_a_graph_that_changed_do_not_fit(bundle: Path) -> None:
    from vlm_trt.exporter.export import Choices, export

    add_engines(bundle)
    export(
        variant_folder("image-224") / "checkpoint", other := bundle.parent / "other",
        Choices(Precision.FP32, max_seq_tokens=700, max_batch=3),
    )  # fmt: skip
    opened, changed = Bundle.open(bundle), Bundle.open(other).graph(Component.DECODER, Precision.FP32)
    opened.manifest = opened.manifest.with_graphs((changed,))
    with pytest.raises(IncompatibleError, match=r"its decoder graph was exported again since"):
        fitting_engines(opened, Precision.FP32, *HERE)


def test_the_precision_is_one_that_has_engines(bundle: Path, exported: Callable[..., Path]) -> None:
    """fp16 is preferred on a GPU, but there are engines of fp32 alone."""
    add_engines(bundle)
    opened = Bundle.open(bundle)
    (fp16,) = {entry.precision for entry in Bundle.open(exported("ntk-256", "fp16")).manifest.graphs}
    opened.manifest = opened.manifest.with_graphs(Bundle.open(exported("ntk-256", "fp16")).manifest.graphs)
    assert fp16 is Precision.FP16
    assert choose_precision(host_backend(), opened, None) is Precision.FP32


def test_engines_are_shown_equal_and_only_then_answer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused as built, verified on the machine with the GPU, then answering; another engine is refused again."""
    add_engines(bundle)
    monkeypatch.setattr(backends, "_tensorrt", lambda name: host_backend(backend=name))
    with pytest.raises(VerificationError, match=r"were built and never run.*--precision fp32 --backend tensorrt-rtx`"):
        load(bundle, backend="tensorrt-rtx")
    report = verify(bundle, backend_name="tensorrt-rtx")
    assert report.passed and report.backend == "tensorrt-rtx"
    assert {one.stage for one in report.figures} >= {"vision_encoder", "resampler", "prefill", "decode_step", "batch"}
    verdicts = Bundle.open(bundle).manifest.verifications
    assert [(v.backend, len(v.engines), v.report) for v in verdicts] == [
        ("tensorrt-rtx", 4, "reports/verification-tensorrt-rtx-1.0-sm89-fp32-3.json")
    ]
    assert load(bundle, backend="tensorrt-rtx").generate("Hello").text is not None
    add_engines(bundle, max_batch=2)
    require_verified(Bundle.open(bundle), Precision.FP32, host_backend())  # the verified one is still chosen


def test_a_wrong_engine_fails_verification_and_stays_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its resampler has some weights of the wrong sign."""
    monkeypatch.setattr(backends, "_tensorrt", lambda name: host_backend(backend=name))
    add_engines(bundle)
    plan = bundle / "engines" / "tensorrt-rtx-1.0-sm89-fp32-3" / "resampler.plan"
    weights = bundle / "graphs" / "fp32" / "resampler.weights"
    wrong = bundle.parent / "wrong"
    shutil.copytree(bundle / "graphs" / "fp32", wrong)
    damaged = bytearray(weights.read_bytes())
    for at in range(3, len(damaged), 64):
        damaged[at] ^= 0x80  # the sign of every sixteenth weight
    (wrong / "resampler.weights").write_bytes(damaged)
    plan.write_text(plan.read_text().replace(str(bundle / "graphs" / "fp32"), str(wrong)))
    _relist(bundle)
    report = verify(bundle, backend_name="tensorrt-rtx")
    assert not report.passed and any(sentence.startswith("resampler") for sentence in report.failures)
    with pytest.raises(VerificationError, match=r"engines of tensorrt-rtx-\S+ failed verification"):
        load(bundle, backend="tensorrt-rtx")


def _relist(path: Path) -> None:
    """Lists the engines as they are now: what is tested is the verdict, not the digest."""

    def relist(manifest: dict[str, Any]) -> None:
        for engine in manifest["engines"]:
            entry = file_entry(path, engine["plan"]["path"])
            engine["plan"] |= {"size": entry.size, "sha256": entry.sha256}

    edit_manifest(path, relist)


def test_engines_of_quantized_graphs_need_good_answers_too(copied: Callable[..., Path]) -> None:
    """Compared with their graphs they may be right, and the graphs' answers bad, or unknown."""
    path = copied("ntk-256")
    quantize(path, Choices(read_recipe("int8-weight"), unverified=True), None)
    opened = Bundle.open(path)
    engines = tuple(
        replace(
            engine,
            precision=Precision.INT8_WEIGHT,
            graph=opened.graph(engine.component, Precision.INT8_WEIGHT).identity,
        )
        for engine in add_engines(path)
    )
    opened.manifest = opened.manifest.with_engines(engines)
    verdict = opened.manifest.verdict(Precision.INT8_WEIGHT, "tensorrt-rtx", True, "reports/a.json", {}, engines)
    opened.manifest = opened.manifest.with_verification(verdict)
    with pytest.raises(
        VerificationError, match="the answers of the int8-weight graphs, .* were not judged; run `vlm-trt"
    ):
        require_verified(opened, Precision.INT8_WEIGHT, host_backend())
    opened.manifest = opened.manifest.with_verification(replace(verdict, engines=(), backend="onnxruntime-cpu"))
    require_verified(opened, Precision.INT8_WEIGHT, host_backend())
