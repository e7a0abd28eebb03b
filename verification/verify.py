"""Bundle in, verdict out: into `reports/` and the manifest. What was not shown equal is not verified."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.host import give_back_memory
from vlm_trt.bundle.leftovers import open_to_write
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import MakeBar, no_bar
from vlm_trt.bundle.store import Bundle, graph_path
from vlm_trt.exporter.references import require_references
from vlm_trt.families.family import Family, family
from vlm_trt.probing.in_parts import InParts
from vlm_trt.probing.session import Rounding
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.backends import choose_backend, choose_precision
from vlm_trt.runtime.load import open_engine, require_judged
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.verification.asked import asked
from vlm_trt.verification.checks import check_engine
from vlm_trt.verification.expected import Truth, expect
from vlm_trt.verification.figures import AS_ROUNDED, Figures, Tolerance
from vlm_trt.verification.graph_reference import GraphReference
from vlm_trt.verification.identity import checkpoint_of
from vlm_trt.verification.memory import require_memory, runs_in_parts
from vlm_trt.verification.outcome import Outcome
from vlm_trt.verification.passages import SHORT, WHOLE

if TYPE_CHECKING:  # it needs torch, and quantized graphs do not
    from vlm_trt.exporter.checkpoint import Checkpoint

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What verification found. `passed` only if every check ran and none failed."""

    precision: Precision
    backend: str
    passed: bool
    figures: tuple[Figures, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    created: str

    def worst(self) -> dict[str, float]:
        """Largest relative difference and smallest cosine, per stage."""
        return {
            "relative": max(one.relative for one in self.figures),
            "cosine": min(one.cosine for one in self.figures),
        }


def verify(
    bundle_path: Path,
    against: Path | None = None,
    precision: str | None = None,
    backend_name: str = "auto",
    progress: Progress = lambda _: None,
    byte_bar: MakeBar = no_bar,
    adapters: Sequence[Path] = (),
) -> Report:
    """Compares a bundle's graphs, or the engines built from them, with the model and records the verdict in any case.

    Args:
        bundle_path: the bundle.
        against: the checkpoint; by default the one the bundle was exported from.
        precision: which graphs; by default the backend's preferred ones.
        backend_name: one of `runtime.backends.NAMES`; a TensorRT runs the engines built from the graphs.
        progress: told what runs now.
        byte_bar: a progress bar for a label and a number of bytes.
        adapters: that were merged, in order; by default where they were then.
    Returns:
        The report, also written to `reports/` and the manifest.
    Raises:
        VerificationError: the checkpoint or an adapter is not there, or not the one the bundle was made from.
        UsageError: as many adapters as were merged were not given.
        IncompatibleError: the backend does not start here, or runs engines and none fits.
        BundleError: a graph takes its weights from elsewhere than its own file.
    """
    started = datetime.now(UTC)
    bundle = open_to_write(bundle_path, progress)
    backend = choose_backend(backend_name, bundle=bundle)
    chosen = choose_precision(Rounding() if isinstance(backend, CpuBackend) else backend, bundle, precision)
    engines = backend.engines(bundle, chosen)
    members = family(bundle.manifest.model.family)
    _require_references(bundle, chosen)
    outcomes = list[Outcome]()
    if chosen.quantization is None:
        progress("audit every weight and constant")
        outcomes.append(_audited(bundle, checkpoint_of(bundle, against, adapters), chosen, byte_bar))
        truth = _model(bundle, checkpoint_of(bundle, against, adapters), chosen, members, progress)
    else:
        truth = _graphs(bundle, chosen, members, engines, progress)
    tokenizer = members.load_tokenizer(bundle.path / bundle.manifest.tokenizer.path, bundle.manifest.model)
    backends = _backends(backend, bundle, chosen, progress)
    model, limits = bundle.manifest.model, bundle.manifest.limits
    extent = SHORT if any(isinstance(one, InParts) for one in backends.values()) else WHOLE
    expected = expect(truth, *asked(members, tokenizer, model, limits, extent))
    give_back_memory()
    for at, (label, one) in enumerate(backends.items()):
        what = f"engines of {engines[0].variant}" if engines else "graphs"
        progress(f"load the {chosen} {what} on {backend.name}{label}")
        # What was compared as it is stored already; large graphs are not worth another quarter of an hour.
        shown = expected.of_one_picture() if at and isinstance(one, InParts) else expected
        engine, tolerance = open_engine(bundle, chosen, one), _tolerance(chosen, one)
        outcomes += check_engine(engine, members, shown, label, progress, tolerance)
        outcomes += _form(bundle, chosen, one)
    report = _report(chosen, backend.name, outcomes, started)
    _publish(bundle, report, engines)
    return report


def _backends(backend: Backend, bundle: Bundle, precision: Precision, progress: Progress) -> dict[str, Backend]:
    """What has to hold for what, by a label: on the CPU half precision as it is stored, which is what a GPU makes of
    the graphs, and as it runs here, where few values are rounded; products with a checkpoint's own 4-bit weights exact,
    and as they run here. Large graphs are run in parts.
    """
    if not isinstance(backend, CpuBackend):
        return {"": backend}
    in_parts = runs_in_parts(family(bundle.manifest.model.family), bundle.manifest.model)
    here: Backend = InParts(False, progress) if in_parts else CpuBackend()
    if precision is Precision.PUBLISHED_INT4:
        exact: Backend = InParts(False, progress, exact=True) if in_parts else CpuBackend(exact=True)
        return {" in exact products": exact, "": here}
    if precision.dtype == "float32":
        return {"": here}
    stored: Backend = InParts(True, progress) if in_parts else Rounding()
    runs_here = {"": here} if precision in CpuBackend.precisions else {}
    return {" rounded as stored": stored, **runs_here}


def _tolerance(precision: Precision, backend: Backend) -> Tolerance | None:
    """How far what runs there may be off, where that is not what is usual for the precision."""
    rounds = precision is Precision.PUBLISHED_INT4 and isinstance(backend, CpuBackend) and not backend.exact
    return AS_ROUNDED if rounds else None


def _form(bundle: Bundle, precision: Precision, backend: Backend) -> list[Outcome]:
    """What was run in the graph's place, said in the report."""
    decoder = bundle.path / graph_path(Component.DECODER, precision)
    if not (isinstance(backend, CpuBackend) and backend.groups(decoder)):
        return []
    note = "the decoder ran as it answers on this backend: its attention as ONNX Runtime's GroupQueryAttention"
    return [Outcome(notes=(note,))]


def _audited(bundle: Bundle, source: "Checkpoint", precision: Precision, byte_bar: MakeBar) -> Outcome:
    """What samples do not meet: every number of the graphs."""
    from vlm_trt.verification.audit import audit

    numbers = audit(bundle, precision, source, byte_bar)
    return Outcome(failures=numbers.failures, notes=(numbers.summary, *numbers.notes))


def _model(bundle: Bundle, source: "Checkpoint", precision: Precision, members: Family, progress: Progress) -> Truth:
    from vlm_trt.verification.streamed import StreamedReference, values_of

    require_memory(members, bundle.manifest.model, bundle.manifest.limits, precision)
    model = bundle.manifest.model
    return StreamedReference(values_of(source, model), model, members, progress)


def _graphs(
    bundle: Bundle, precision: Precision, members: Family, engines: tuple[EngineEntry, ...], progress: Progress
) -> GraphReference:
    """
    Raises:
        UsageError: the quantized graphs themselves are asked about, and their verdict is about answers.
        VerificationError: those answers were not judged, or were too much worse.
    """
    if not engines:
        raise UsageError(
            f"{precision} graphs are not equal to the model by design; whether their answers are good enough is judged "
            f"by: vlm-trt verify {bundle.path} --precision {precision}"
        )
    require_judged(bundle, precision)
    backend = next(iter(_backends(CpuBackend(), bundle, precision, progress).values()))
    return GraphReference(bundle, precision, backend, members)


def _require_references(bundle: Bundle, precision: Precision) -> None:
    """Before a graph is loaded: its weights are all in its own file, the one whose hash the manifest holds."""
    for entry in bundle.manifest.graphs:
        if entry.precision is precision:
            weights = None if entry.weights is None else bundle.path / entry.weights.path
            require_references(bundle.path / entry.graph.path, weights)


def _report(precision: Precision, backend: str, outcomes: list[Outcome], started: datetime) -> Report:
    failures = tuple(sentence for outcome in outcomes for sentence in outcome.failures)
    return Report(
        precision=precision,
        backend=backend,
        passed=not failures,
        figures=tuple(one for outcome in outcomes for one in outcome.figures),
        failures=failures,
        notes=tuple(note for outcome in outcomes for note in outcome.notes),
        seconds=(datetime.now(UTC) - started).total_seconds(),
        created=started.isoformat(timespec="seconds"),
    )


def _publish(bundle: Bundle, report: Report, engines: tuple[EngineEntry, ...]) -> None:
    """Report and verdict into the bundle; the verdict names all that it is about by hashes."""
    path = f"reports/verification-{engines[0].variant if engines else report.precision}.json"
    verdict = bundle.manifest.verdict(report.precision, report.backend, report.passed, path, report.worst(), engines)
    bundle.record(verdict, json.dumps(asdict(report), indent=2) + "\n")
