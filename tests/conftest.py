"""Golden data and bundles that many tests share, each exported once per run."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.golden_families import FAMILIES, MAX_SEQ_TOKENS, write_checkpoint
from tests.once_per_run import alone, remembered, run_folder
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.precision import Precision

if TYPE_CHECKING:
    from vlm_trt.exporter.graph_files import GraphPlan

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "qwen_vl"
SHARED = ROOT.parent / "shared"

# A core for each worker: threads of two workers that wait for the same core are many times slower than one thread each.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER.startswith("gw"):
    _CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_CORES[int(_WORKER.removeprefix("gw")) % len(_CORES)]})

# Variants that every clone has, and those that lie beside the project.
OWN_VARIANTS = ("image-224", "ntk-256")
SHARED_VARIANTS = ("chat-448", "no-ntk-no-logn")
CASES = ("text", "one-image", "two-images", "multi-turn-box", "raw-base", "cross-seq-length")


def slow_tests() -> set[str]:
    """Functions, and cases of functions, that `scripts/test` leaves to CI."""
    lines = (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = slow_tests()
    for item in items:
        if slow & {item.nodeid, item.nodeid.partition("[")[0]}:
            item.add_marker(pytest.mark.slow)


def variant_folder(variant: str) -> Path:
    """The golden folder of a variant; skips, loudly, where it is not there."""
    folder = GOLDEN / variant if variant in OWN_VARIANTS else SHARED / "golden" / "qwen_vl" / variant
    if not folder.is_dir():
        pytest.skip(f"golden variant {variant} lies beside the project in ../shared, which this clone lacks")
    return folder


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an .npz file."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (official vocabulary, further golden data), which this clone lacks")
    return SHARED


Export = Callable[..., Path]


@pytest.fixture(scope="session", autouse=True)
def traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Graphs are traced in earnest, and each once per run: it takes torch some seconds of each, however small."""
    from vlm_trt.exporter import graph_files

    folder = run_folder(tmp_path_factory) / "traced"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_files, "remembered", remembered(folder, graph_files.remembered, _traced_of))
        yield


def _traced_of(plan: "GraphPlan", model: ModelConfig, limits: Limits) -> object:
    """What a graph is made of: models that share a part share its graph, and each is held to golden values of its own.

    Source: exporter/modules/build.py.
    """
    match plan.component:
        case Component.VISION_ENCODER:
            return plan, model.vision
        case Component.RESAMPLER:
            return plan, model.vision, model.connector
        case Component.DECODER:
            return plan, model.decoder, limits, model.region is not None
        case Component.REGION:
            return plan, model.region
        case Component.SAMPLER:
            return plan, model.decoder.vocab_size


@pytest.fixture(scope="session")
def family_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: a key of FAMILIES → its golden checkpoint, made once per run."""
    root = run_folder(tmp_path_factory) / "checkpoints"
    root.mkdir(exist_ok=True)

    def checkpoint(name: str) -> Path:
        with alone(root / name):
            return root / name if (root / name).exists() else write_checkpoint(name, root / name)

    return checkpoint


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, family_checkpoint: Callable[[str], Path]) -> Export:
    """A function: variant or family, precision → its bundle, unverified, made once per run and shared by all workers.

    Nobody writes into it: `copied` gives a test one of its own.
    """
    from vlm_trt.bundle.store import Bundle
    from vlm_trt.exporter.export import Choices, export

    root = run_folder(tmp_path_factory) / "bundles"
    root.mkdir(exist_ok=True)

    def bundle(variant: str, precision: str = "fp32", max_seq_tokens: int = 700, max_batch: int = 3) -> Path:
        checkpoint = family_checkpoint(variant) if variant in FAMILIES else variant_folder(variant) / "checkpoint"
        max_seq_tokens = MAX_SEQ_TOKENS if variant in FAMILIES else max_seq_tokens
        name = f"{variant}-{precision}-{max_seq_tokens}-{max_batch}"
        target = root / hashlib.sha256(name.encode()).hexdigest()[:8] / variant
        with alone(root / name):
            if not target.exists():
                choices = Choices(Precision(precision), max_seq_tokens=max_seq_tokens, max_batch=max_batch)
                export(checkpoint, target, choices)
        manifest = Bundle.open(target).manifest
        assert not (manifest.verifications or manifest.engines), f"a test wrote into the shared bundle {target}"
        return target

    return bundle


@pytest.fixture
def copied(exported: Export, tmp_path: Path) -> Export:
    """Like `exported`, and the test's own, to write into."""

    def bundle(variant: str = "ntk-256", precision: str = "fp32", **limits: int) -> Path:
        target = tmp_path / f"{variant}-{precision}"
        shutil.copytree(exported(variant, precision, **limits), target)
        return target

    return bundle


@pytest.fixture(scope="session")
def verified(exported: Export) -> Export:
    """Like `exported`, verified."""
    from vlm_trt.bundle.store import Bundle
    from vlm_trt.verification.verify import verify

    def bundle(variant: str, precision: str = "fp32", **limits: int) -> Path:
        unverified = exported(variant, precision, **limits)
        target = unverified.parent / "verified" / variant
        with alone(unverified.parent / "verify"):
            if not target.exists():
                shutil.copytree(unverified, target)
            if Bundle.open(target).manifest.verification(Precision(precision)) is None:
                verify(target, precision=precision, backend_name="cpu")
        return target

    return bundle


@pytest.fixture(scope="session")
def demo_graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function: precision → a bundle of the demo model, unverified, made once per run and shared by all workers."""
    from vlm_trt.exporter.export import Choices, export

    def bundle(precision: str) -> Path:
        target = run_folder(tmp_path_factory) / f"demo-graphs-{precision}"
        with alone(target):
            if not target.exists():
                export(ROOT / "examples" / "demo_model" / "checkpoint", target, Choices(Precision(precision)))
        return target

    return bundle


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory, demo_graphs: Callable[[str], Path]) -> Callable[[str], Path]:
    """Like `demo_graphs`, verified."""
    from vlm_trt.bundle.store import Bundle
    from vlm_trt.verification.verify import verify

    def bundle(precision: str) -> Path:
        target = run_folder(tmp_path_factory) / f"demo-{precision}"
        with alone(target):
            if not target.exists():
                shutil.copytree(demo_graphs(precision), target)
            if Bundle.open(target).manifest.verification(Precision(precision)) is None:
                verify(target, precision=precision, backend_name="cpu")
        return target

    return bundle
