"""`vlm-trt build`: real engines of whole bundles, what the manifest says of them, and faults."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from tests.commands.runs import vlm_trt
from tests.conftest import OWN_VARIANTS, ROOT, SHARED_VARIANTS
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.errors import BundleError, ResourceError, StorageError, UsageError, VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import exclusive
from vlm_trt.bundle.store import Bundle, file_entry, publish_graphs
from vlm_trt.engines.build import Choices, build
from vlm_trt.engines.builder import BuildOptions
from vlm_trt.engines.profiles import profiles
from vlm_trt.engines.worker import built_apart

RTX = "tensorrt-rtx"
SM89 = Choices(backend=RTX, targets=("sm89",))
Copy = Callable[..., Path]


@pytest.mark.parametrize("variant", (*OWN_VARIANTS, *SHARED_VARIANTS))
def test_every_golden_variant_builds_in_fp16(variant: str, copied: Copy) -> None:
    require_engines(copied(variant, "fp16"), ("sm89",))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_other_precisions_build_for_every_generation(precision: str, copied: Copy) -> None:
    require_engines(copied("ntk-256", precision), ("sm80", "sm89", "sm120"))


def test_the_demo_model_builds(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(demo_bundle("fp16"), tmp_path / "demo")
    require_engines(tmp_path / "demo", ("sm80", "sm89", "sm120"))


def require_engines(path: Path, targets: tuple[str, ...]) -> None:
    entries = build(path, Choices(backend=RTX, targets=targets))
    manifest = Bundle.open(path).manifest
    assert manifest.engines == entries
    components = manifest.model.components
    assert [(entry.target, entry.component) for entry in entries] == [(t, c) for t in targets for c in components]
    for entry in entries:
        graph = manifest.graph(entry.component, entry.precision)
        assert graph is not None and entry.graph == graph.identity and not manifest.is_stale(entry)
        assert sha256_of(path / entry.plan.path) == entry.plan.sha256
        assert entry.plan.size > graph.weight_bytes // 2  # it carries the weights
        assert sum(entry.weights.values()) >= 0.9 * graph.weight_bytes
        assert entry.profiles == profiles(entry.component, manifest.model, manifest.limits, entry.precision)
        assert entry.gpu is None and entry.seconds > 0 and entry.peak_ram_bytes > 50 << 20
    layers = manifest.model.decoder.layers
    decoder = next(entry for entry in entries if entry.component is Component.DECODER)
    assert decoder.layers["KV_CACHE_UPDATE"] == 2 * layers and decoder.layers["ATTENTION_INPUT"] == layers


def test_the_command_says_what_it_made_and_what_comes_next(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    done = vlm_trt("build", path, "--backend", RTX, "--target", "sm89", "--component", "resampler")
    assert done.exit_code == 0, done.output
    assert "build resampler sm89" in done.output
    assert "built, not run: no engine is used before it is shown equal to the model" in done.output
    (entry,) = Bundle.open(path).manifest.engines
    assert entry.plan.path in done.output and entry.variant.startswith("tensorrt-rtx-1.")


def test_smaller_limits_are_another_variant(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    (whole,) = build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.DECODER,)))
    (small,) = build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.DECODER,), max_batch=1))
    assert small.variant != whole.variant and small.limits.max_batch == 1
    assert small.profiles[0].shapes["input_ids"][0] == (1, 1, 1)
    assert set(Bundle.open(path).manifest.variants()) == {whole.variant, small.variant}
    with pytest.raises(UsageError, match="--max-batch 9 is beyond the bundle's 3; export with a larger --max-batch"):
        build(path, Choices(backend=RTX, targets=("sm89",), max_batch=9))


def test_a_second_build_takes_the_place_of_the_first(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    first = build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.RESAMPLER,)))
    second = build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.RESAMPLER,)))
    assert [entry.plan.path for entry in first] == [entry.plan.path for entry in second]
    assert Bundle.open(path).manifest.engines == second


def test_an_engine_left_behind_by_a_new_export_is_stale_and_replaced(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    chosen = Choices(backend=RTX, targets=("sm89",), components=(Component.RESAMPLER,))
    (old,) = build(path, chosen)
    export_another(path, Component.RESAMPLER)
    assert Bundle.open(path).manifest.is_stale(old)
    shown = vlm_trt("inspect", path).output
    assert "stale" in shown and old.variant in shown
    (new,) = build(path, chosen)
    manifest = Bundle.open(path).manifest
    assert manifest.engines == (new,) and new.variant != old.variant and not manifest.is_stale(new)
    assert not (path / old.plan.path).exists()


def export_another(path: Path, component: Component) -> None:
    """Puts a graph that differs in a name into the bundle, as a new export would."""
    bundle = Bundle.open(path)
    entry = bundle.manifest.graph(component, Precision.FP16)
    assert entry is not None and entry.weights is not None
    staging = path.with_name("staging")
    (staging / entry.graph.path).parent.mkdir(parents=True)
    model = onnx.load(path / entry.graph.path, load_external_data=False)
    model.doc_string = "another"
    (staging / entry.graph.path).write_bytes(model.SerializeToString())
    shutil.copyfile(path / entry.weights.path, staging / entry.weights.path)
    publish_graphs(bundle, staging, (replace(entry, graph=file_entry(staging, entry.graph.path)),))


def test_a_damaged_plan_is_named_with_what_mends_it(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    (entry,) = build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.RESAMPLER,)))
    plan = path / entry.plan.path
    whole = plan.read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        plan.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(BundleError, match=r"resampler\.plan has \d+ bytes, the manifest says .*: vlm-trt build"):
            Bundle.open(path)
    plan.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(BundleError, match=r"resampler\.plan was changed after it was made .*: vlm-trt build"):
        Bundle.open(path).check((entry,))
    plan.unlink()
    with pytest.raises(BundleError, match=r"resampler\.plan is missing; build it again: vlm-trt build"):
        Bundle.open(path)
    said: list[str] = []
    build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.RESAMPLER,)), said.append)
    assert f"{plan} is missing or not as it was made, so the bundle does not list it any more" in said
    (again,) = Bundle.open(path).manifest.engines
    assert again.plan.path == entry.plan.path


def test_two_builders_at_once(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    (path / "engines").mkdir()
    with exclusive(path / "engines"), pytest.raises(StorageError, match="is being written by another process; wait"):
        build(path, SM89)
    assert Bundle.open(path).manifest.engines == ()


def test_a_builder_that_is_killed_publishes_nothing(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    before = sorted(path.rglob("*"))

    def kill(share: float) -> None:
        (child,) = multiprocessing.active_children()
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    bundle = Bundle.open(path)
    entry = bundle.manifest.graph(Component.DECODER, Precision.FP16)
    assert entry is not None
    shapes = profiles(Component.DECODER, bundle.manifest.model, bundle.manifest.limits, Precision.FP16)
    with pytest.raises(ResourceError, match=r"was ended by SIGKILL, most likely for lack of memory; .*: vlm-trt plan"):
        built_apart(path / entry.graph.path, shapes, path.with_name("plan"), BuildOptions(RTX, "sm89"), kill)
    assert sorted(path.rglob("*")) == before


def test_a_build_that_is_killed_leaves_the_bundle_as_it_was(copied: Copy) -> None:
    """The command and its builder; the next build clears away what it had staged."""
    path = copied("ntk-256", "fp16")
    command = [sys.executable, "-m", "vlm_trt.cli", "build", str(path), "--backend", RTX, "--target", "sm89,sm120"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(path.glob(".engines.staging-*/**/*.plan")) and running.poll() is None:
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert Bundle.open(path).manifest.engines == ()
    left = list(path.glob(".engines.staging-*")) + list((path / "engines").glob(".*"))
    assert left
    build(path, Choices(backend=RTX, targets=("sm89",), components=(Component.RESAMPLER,)))
    assert not any(folder.exists() for folder in left)


def test_graphs_that_failed_verification_are_not_built(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    bundle = Bundle.open(path)
    failed = bundle.manifest.verdict(Precision.FP16, "onnxruntime-cpu", False, "reports/x.json", {"cosine": 0.5})
    bundle.record(failed, "{}")
    with pytest.raises(VerificationError, match=r"failed verification \(reports/x\.json\), so no engine is built"):
        build(path, SM89)


def test_a_host_too_small_is_said_before_the_build(
    copied: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 300000 kB\nMemAvailable: 102400 kB\n")
    monkeypatch.setattr("vlm_trt.bundle.host.MEMINFO", meminfo)
    path = copied("ntk-256", "fp16")
    with pytest.raises(ResourceError, match=r"fp16 decoder needs about 0\.2 GiB .* 0\.1 GiB are free; build"):
        build(path, SM89)
    assert not (path / "engines").exists()


def test_a_timing_cache_that_would_hold_nothing_is_refused(copied: Copy, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt-rtx times no kernels .* keeps no --timing-cache; leave it out"):
        build(copied("ntk-256", "fp16"), Choices(backend=RTX, targets=("sm89",), timing_cache=tmp_path / "timings"))
    assert not (tmp_path / "timings").exists()


def test_a_precision_the_bundle_lacks(copied: Copy) -> None:
    path = copied("ntk-256", "fp16")
    with pytest.raises(UsageError, match=r"has no bf16 graphs for TensorRT \(it has fp16\); export it: .* bf16"):
        build(path, Choices(backend=RTX, targets=("sm89",), precision=Precision.BF16))
