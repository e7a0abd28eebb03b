"""Test equipment: a bundle of a few bytes, which opens and answers nothing."""

from collections.abc import Callable
from pathlib import Path

from tests.conftest import GOLDEN
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import usual_limits
from vlm_trt.bundle.entries import EngineEntry, GraphEntry
from vlm_trt.bundle.manifest import SCHEMA, Manifest, Source, Verification
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import staging_folder
from vlm_trt.bundle.store import (
    Bundle,
    file_entry,
    graph_path,
    publish_engines,
    publish_graphs,
    publish_new,
    staging_of,
    weights_path,
)
from vlm_trt.families.qwen_vl.config import read_config

MODEL = read_config(GOLDEN / "image-224" / "checkpoint")
FP16 = Precision.FP16
REPORT = "reports/verification-fp16.json"


def new(target: Path, content: str = "old") -> Bundle:
    """As an export makes it, of one graph."""
    with staging_folder(staging_of(target)) as staging:
        graph = _graph(staging, content)
        (staging / "tokenizer").mkdir()
        (staging / "tokenizer" / "words").write_text("words")
        tokenizer = file_entry(staging, "tokenizer/words")
        source = Source("checkpoint", {})
        publish_new(staging, target, Manifest(SCHEMA, "1", MODEL, usual_limits(MODEL), source, tokenizer, (graph,)))
    return Bundle.open(target)


def replace_graph(path: Path, content: str = "new") -> None:
    """As an export with --force replaces it."""
    with staging_folder(path / "graphs") as staging:
        publish_graphs(Bundle.open(path), staging, (_graph(staging, content),))


def add_engine(path: Path, content: str = "plan") -> None:
    """As a build adds it."""
    bundle = Bundle.open(path)
    (path / "engines").mkdir(exist_ok=True)
    with staging_folder(path / "engines") as staging:
        plan = staging / "engines" / "variant" / "decoder.plan"
        plan.parent.mkdir(parents=True)
        plan.write_text(content)
        entry = EngineEntry(
            component=Component.DECODER, precision=FP16, backend="tensorrt-rtx", version="1", target="sm89", gpu=None,
            plan=file_entry(staging, "engines/variant/decoder.plan"), graph=bundle.manifest.graphs[0].identity,
            limits=bundle.manifest.limits, profiles=(), layers={}, weights={}, weight_streaming=False, seconds=0.0,
            peak_ram_bytes=0, created="2026-01-01",
        )  # fmt: skip
        publish_engines(bundle, staging, (entry,))


def record(path: Path) -> None:
    """As a verification does."""
    bundle = Bundle.open(path)
    bundle.record(verdict(bundle), "{}")


def verdict(bundle: Bundle) -> Verification:
    return bundle.manifest.verdict(FP16, "cpu", False, REPORT, {})


WRITERS: dict[str, Callable[[Path], None]] = {"graph": replace_graph, "engine": add_engine, "record": record}


def files(path: Path) -> list[str]:
    """Everything in a folder, but folders."""
    return sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())


def named(bundle: Bundle) -> list[str]:
    """What may lie in a bundle: the manifest, what it names, reports."""
    reports = [REPORT] if (bundle.path / REPORT).exists() else []
    return sorted(["bundle.json", *reports, *(file.path for file in bundle.manifest.files())])


def _graph(staging: Path, content: str) -> GraphEntry:
    paths = graph_path(Component.DECODER, FP16), weights_path(Component.DECODER, FP16)
    for path in paths:
        (staging / path).parent.mkdir(parents=True, exist_ok=True)
        (staging / path).write_text(content)
    return GraphEntry(Component.DECODER, FP16, 24, *(file_entry(staging, path) for path in paths))
