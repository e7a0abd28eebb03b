"""Graphs that are off, made again: half precision with islands of fp32, and verified before anything is published."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.bundle.manifest import Verification
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.staging import replace_file, require_room, staging_folder
from vlm_trt.bundle.store import MANIFEST, Bundle, file_entry, publish_graphs
from vlm_trt.diagnosis.diagnose import Diagnosis, diagnose, islands
from vlm_trt.diagnosis.islands import Island
from vlm_trt.verification.samples import Sample
from vlm_trt.verification.verify import Report, verify

_ROUNDS = 16
# Verifications, each after islands where less is off than before.
_ATTEMPTS = 4


@dataclass(frozen=True)
class Mended:
    """What was done, and what came of it."""

    islands: Mapping[Component, Island]
    rounds: int
    after: Diagnosis
    report: Report  # of the verification that let them be published


def mend(
    bundle: Bundle,
    before: Diagnosis,
    asked: list[Sample],
    against: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Mended:
    """Publishes the graphs with as few nodes in fp32 as let them pass verification.

    A round makes the islands that the values show, and looks again: behind an overflow nothing can be seen at first.

    Args:
        bundle: with graphs in half precision.
        before: what is wrong with them.
        asked: the prompts that showed it.
        against: the checkpoint to verify with; None takes the one the bundle was exported from.
        say: told what runs now.
    Raises:
        VerificationError: no islands help, or the graphs fail verification with them; nothing is published.
        StorageError: no room.
    """
    entries = [bundle.graph(component, before.precision) for component in bundle.manifest.model.components]
    require_room(bundle.path / "graphs", sum(file.size for entry in entries for file in entry.files))
    with staging_folder(bundle.path / "graphs") as folder:
        staged = _staged(bundle, entries, folder)
        found, diagnosis, rounds = dict[Component, Island](), before, 0
        failed = "no single node is to blame"
        for _ in range(_ATTEMPTS):
            more = islands(bundle, diagnosis, found)
            if more != found:
                while more != found and rounds < _ROUNDS:
                    found, rounds = more, rounds + 1
                    say(f"round {rounds}: {_nodes(found)} nodes in fp32")
                    staged = _apply(bundle, staged, before.precision, found)
                    again = diagnose(bundle, before.precision, asked, staged, say)
                    diagnosis = replace(again, tolerance=diagnosis.tolerance)
                    more = islands(bundle, diagnosis, found)
                report = verify(folder, against or _checkpoint(bundle), str(before.precision), "cpu", say)
                if report.passed:
                    _publish(bundle, folder, before.precision, set(found))
                    return Mended(found, rounds, diagnosis, report)
                failed = report.failures[0]
            diagnosis = diagnosis.tightened()  # every value is inside the tolerance, and errors add up
    raise VerificationError(
        f"{bundle.path}: with {_nodes(found)} nodes in fp32 the {before.precision} graphs still fail verification "
        f"({failed}); nothing is published, export in a wider precision"
    )


def _nodes(found: Mapping[Component, Island]) -> int:
    return sum(len(island.nodes) for island in found.values())


def _checkpoint(bundle: Bundle) -> Path:
    return Path(bundle.manifest.source.checkpoint)


def _staged(bundle: Bundle, entries: list[GraphEntry], folder: Path) -> Bundle:
    """The graphs as a bundle of their own, copied: nothing else may hold a name of a bundle's file."""
    files = [bundle.manifest.tokenizer, *(file for entry in entries for file in entry.files)]
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / file.path, folder / file.path)
    replace_file(folder / MANIFEST, bundle.manifest.alone(tuple(entries)).dumps())
    return Bundle.open(folder)


def _apply(bundle: Bundle, staged: Bundle, precision: Precision, found: Mapping[Component, Island]) -> Bundle:
    """The islands in the graphs as they are in the bundle, written to the staged one."""
    entries = []
    for component, island in found.items():
        entry = bundle.graph(component, precision)
        model = ir.load(bundle.path / entry.graph.path)
        island.apply(model)
        target = staged.path / entry.graph.path
        target.write_bytes(ir.serde.serialize_model(model).SerializeToString())
        entries.append(replace(entry, graph=file_entry(staged.path, entry.graph.path)))
    replace_file(staged.path / MANIFEST, staged.manifest.with_graphs(tuple(entries)).dumps())
    return Bundle.open(staged.path)


def _publish(bundle: Bundle, folder: Path, precision: Precision, changed: set[Component]) -> None:
    """The changed graphs and the verdict on all of them."""
    staged = Bundle.open(folder)
    verdict: Verification | None = staged.manifest.verification(precision)
    assert verdict is not None
    report = (folder / verdict.report).read_text(encoding="utf-8")
    ordered = [component for component in bundle.manifest.model.components if component in changed]
    publish_graphs(bundle, folder, tuple(staged.graph(component, precision) for component in ordered))
    bundle.record(verdict, report)
