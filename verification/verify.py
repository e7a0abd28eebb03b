"""Bundle in, verdict out: into `reports/` and the manifest. What was not shown equal is not verified."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.errors import NotFiniteError, UsageError, VerificationError
from vlm_trt.bundle.manifest import Verification
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.references import require_references
from vlm_trt.families.family import Family, family
from vlm_trt.probing.session import Rounding
from vlm_trt.runtime.backend import Backend
from vlm_trt.runtime.backends import choose_backend, choose_precision
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.load import open_engine, require_judged
from vlm_trt.runtime.ort import CpuBackend
from vlm_trt.verification.checks import (
    Decoded,
    Outcome,
    check_cache,
    check_chain,
    check_decoder,
    check_swap,
    check_vision,
    decode_reference,
    pixels_of,
)
from vlm_trt.verification.figures import Figures, tolerance_of
from vlm_trt.verification.graph_reference import GraphReference
from vlm_trt.verification.memory import require_memory
from vlm_trt.verification.reference import Expected, Reference
from vlm_trt.verification.samples import samples

Progress = Callable[[str], None]
NEW_TOKENS = 6


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
) -> Report:
    """Compares a bundle's graphs, or the engines built from them, with the model and records the verdict in any case.

    Args:
        bundle_path: the bundle.
        against: the checkpoint; by default the one the bundle was exported from.
        precision: which graphs; by default the backend's preferred ones.
        backend_name: one of `runtime.backends.NAMES`; a TensorRT runs the engines built from the graphs.
        progress: told what runs now.
    Returns:
        The report, also written to `reports/` and the manifest.
    Raises:
        VerificationError: the checkpoint is not there, or not the one the bundle was made from.
        IncompatibleError: the backend does not start here, or runs engines and none fits.
        BundleError: a graph takes its weights from elsewhere than its own file.
    """
    started = datetime.now(UTC)
    bundle = Bundle.open(bundle_path)
    backend = choose_backend(backend_name, bundle=bundle)
    if isinstance(backend, CpuBackend):
        backend = Rounding()
    chosen = choose_precision(backend, bundle, precision)
    backends = _backends(backend, chosen)
    engines = backend.engines(bundle, chosen)
    members = family(bundle.manifest.model.family)
    _require_references(bundle, chosen)
    if chosen.quantization is None:
        reference: Expected = _torch_reference(bundle, against, chosen, members, progress)
    else:
        reference = _graph_reference(bundle, chosen, members, engines)
    outcomes, known = list[Outcome](), dict[str, Decoded]()
    for label, one in backends.items():
        what = f"engines of {engines[0].variant}" if engines else "graphs"
        progress(f"load the {chosen} {what} on {backend.name}{label}")
        outcomes += _outcomes(bundle, open_engine(bundle, chosen, one), reference, known, label, progress)
    report = _report(chosen, backend.name, outcomes, started)
    _publish(bundle, report, engines)
    return report


def _backends(backend: Backend, precision: Precision) -> dict[str, Backend]:
    """What has to hold for what, by a label: on the CPU half precision as it is stored, which is what a GPU makes of
    the graphs, and as it runs here, where few values are rounded.
    """
    if not isinstance(backend, CpuBackend) or precision.dtype == "float32":
        return {"": backend}
    backends: dict[str, Backend] = {" rounded as stored": backend}
    if precision in CpuBackend.precisions:
        backends[""] = CpuBackend()
    return backends


def _torch_reference(
    bundle: Bundle, against: Path | None, precision: Precision, members: Family, progress: Progress
) -> Reference:
    source = _source(bundle, against, members.tokenizer_file)
    require_memory(members, bundle.manifest.model, precision)
    progress("load the checkpoint into the torch modules")
    return Reference(source, bundle.manifest.model, members)


def _graph_reference(
    bundle: Bundle, precision: Precision, members: Family, engines: tuple[EngineEntry, ...]
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
    return GraphReference(bundle, precision, members)


def _source(bundle: Bundle, against: Path | None, tokenizer_file: str) -> Checkpoint:
    """The checkpoint to compare with, which must be the one the bundle was made from."""
    source = bundle.manifest.source
    folder = Path(source.checkpoint) if against is None else against
    if not folder.is_dir():
        raise VerificationError(
            f"the checkpoint {folder} is not there, so there is nothing to compare with; give its folder with --against"
        )
    checkpoint = Checkpoint(folder)
    found = checkpoint.source_hashes(tokenizer_file)
    changed = sorted(name for name in source.files if source.files[name] != found.get(name))
    if changed:
        raise VerificationError(
            f"{folder} is not the checkpoint this bundle was exported from: {', '.join(changed[:3])} differ; "
            "give the right one with --against, or export again"
        )
    return checkpoint


def _require_references(bundle: Bundle, precision: Precision) -> None:
    """Before a graph is loaded: its weights are all in its own file, the one whose hash the manifest holds."""
    for entry in bundle.manifest.graphs:
        if entry.precision is precision:
            require_references(bundle.path / entry.graph.path, bundle.path / entry.weights.path)


def _outcomes(
    bundle: Bundle, engine: Engine, reference: Expected, known: dict[str, Decoded], label: str, progress: Progress
) -> Iterator[Outcome]:
    """Every check, in the order data flows.

    Args:
        bundle: the bundle.
        engine: what is checked.
        reference: what it is compared with.
        known: the reference's continuations by the sample's name; those that are missing are added.
        label: what follows the name of each sample.
        progress: told what runs now.
    """
    manifest = bundle.manifest
    kind = family(manifest.model.family)
    tokenizer = kind.load_tokenizer(bundle.path / manifest.tokenizer.path, manifest.model)
    tolerance = tolerance_of(engine.precision)
    for sample in samples(kind, tokenizer, manifest.model, manifest.limits, NEW_TOKENS):
        pixels = pixels_of(kind, engine, sample.prompt) if sample.prompt.images else None
        name = f"{sample.name}{label}"
        progress(f"{name}: {len(sample.prompt.ids)} tokens")
        if pixels is not None:
            yield check_vision(name, engine, reference, pixels, tolerance)
        if sample.name not in known:
            known[sample.name] = decode_reference(reference, kind, sample, pixels, NEW_TOKENS)
        decoded = known[sample.name].named(name)
        yield from _unless_lost(f"prefill of {name}", partial(check_decoder, engine, kind, decoded, tolerance))
        if pixels is not None:
            yield from _unless_lost(
                f"whole_chain of {name}", partial(check_chain, engine, kind, decoded, pixels, tolerance)
            )
    progress(f"picture swapped, cache off, chunks, batch{label}")
    one, other = (known[name].named(f"{name}{label}") for name in ("one_image", "swapped_image"))
    yield from _unless_lost(f"image_swap{label}", partial(check_swap, engine, kind, one, other))
    yield from _unless_lost(f"cache{label}", partial(check_cache, engine, kind, one, tolerance))


def _unless_lost(what: str, check: Callable[[], Outcome]) -> Iterator[Outcome]:
    """The outcome; where the decoder computed infinity or NaN, a failure that says so."""
    try:
        yield check()
    except NotFiniteError:
        yield Outcome(failures=(f"{what}: the logits are not finite",))


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
    """Report and verdict into the bundle; the verdict names the graphs and engines it is about by their hashes."""
    path = f"reports/verification-{engines[0].variant if engines else report.precision}.json"
    graphs = [bundle.manifest.graph(component, report.precision) for component in Component]
    verdict = Verification(
        precision=report.precision,
        backend=report.backend,
        passed=report.passed,
        report=path,
        graphs=tuple(sorted(entry.identity for entry in graphs if entry is not None)),
        engines=tuple(sorted(engine.identity for engine in engines)),
        created=report.created,
        figures=report.worst(),
    )
    bundle.record(verdict, json.dumps(asdict(report), indent=2) + "\n")
