"""Bundle in, engines out: each graph compiled in a process of its own, all of them published at once."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry, Profile
from vlm_trt.bundle.errors import ResourceError, UnsupportedError, UsageError, VerificationError
from vlm_trt.bundle.host import available_bytes
from vlm_trt.bundle.leftovers import open_to_write
from vlm_trt.bundle.manifest import Manifest
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import Bar
from vlm_trt.bundle.staging import exclusive, require_room, staging_folder, storage_errors
from vlm_trt.bundle.store import Bundle, how_to_make, publish_engines
from vlm_trt.bundle.tensorrt import load_backend
from vlm_trt.engines.backend import Device, default_backend, device, require_target
from vlm_trt.engines.builder import BuildOptions, Built
from vlm_trt.engines.finding import Finding
from vlm_trt.engines.inspect_plan import Expected, inspect_plan
from vlm_trt.engines.lint import lint_graph
from vlm_trt.engines.plan import build_ram_bytes, engine_bytes
from vlm_trt.engines.profiles import profiles
from vlm_trt.engines.timing_cache import default_path, require_writable
from vlm_trt.engines.worker import built_apart

# Of a small engine, most is not weights.
_ENGINE_MARGIN_BYTES = 16 << 20
PREFERRED = (
    *(Precision.FP16, Precision.BF16, Precision.FP32),
    *(Precision.PUBLISHED_INT4_FP16, Precision.PUBLISHED_INT4_BF16),
)


@dataclass(frozen=True)
class Choices:
    """What to build; None takes the default, or what the bundle has."""

    backend: str | None = None
    precision: Precision | None = None
    components: tuple[Component, ...] = ()  # none: all
    targets: tuple[str, ...] = ("native",)
    max_batch: int | None = None
    max_images: int | None = None
    optimization_level: int | None = None
    workspace_gib: float | None = None
    weight_streaming: bool = False
    timing_cache: Path | None = None


@dataclass(frozen=True)
class Job:
    """Everything a build was asked to do, resolved and checked before anything is built."""

    bundle: Bundle
    backend: str
    version: str
    precision: Precision
    graphs: tuple[GraphEntry, ...]
    limits: Limits
    options: tuple[BuildOptions, ...]  # one per target
    device: Device | None


def build(
    path: Path,
    choices: Choices,
    say: Callable[[str], None] = lambda _: None,
    percent_bar: Callable[[str], AbstractContextManager[Bar | None]] = lambda _: nullcontext(),
) -> tuple[EngineEntry, ...]:
    """Compiles a bundle's graphs into engines and lists them in its manifest.

    Args:
        path: the bundle.
        choices: backend, precision, targets, limits and settings.
        say: told what runs now, and what the lint warns of.
        percent_bar: a progress bar of a hundred steps for a label.
    Returns:
        The new engines, "built, not run": nothing uses them before they are shown equal to the model.
    Raises:
        IncompatibleError: the backend is not installed, or cannot build for a target.
        UnsupportedError: a graph holds a trap, or does not build; nothing is published.
        VerificationError: the graphs failed verification.
        ResourceError: not enough memory. StorageError: no room, or no permission.
    """
    job = _prepare(path, choices, say)
    weights = sum(entry.weight_bytes for entry in job.graphs)
    require_room(path, len(job.options) * (engine_bytes(weights) + len(job.graphs) * _ENGINE_MARGIN_BYTES))
    for options in job.options:
        for entry in job.graphs:
            _lint(job, entry, options.target, say)
    engines = path / "engines"
    with storage_errors(engines):
        engines.mkdir(exist_ok=True)
    with exclusive(engines), staging_folder(engines) as staging:
        entries = tuple(
            _build_one(job, entry, options, staging, say, percent_bar)
            for options in job.options
            for entry in job.graphs
        )
        publish_engines(job.bundle, staging, entries)
    return entries


def _prepare(path: Path, choices: Choices, say: Callable[[str], None]) -> Job:
    bundle = open_to_write(path, say)
    manifest = bundle.manifest
    backend = choices.backend or default_backend()
    trt = load_backend(backend)
    precision = _precision(manifest, choices.precision, path)
    here = device()
    targets = dict.fromkeys(require_target(trt, backend, target, here) for target in choices.targets)
    graphs = tuple(bundle.graph(component, precision) for component in choices.components or manifest.model.components)
    verdict = manifest.verification(precision)
    if verdict is not None and not verdict.passed:
        raise VerificationError(
            f"{path}: the {precision} graphs failed verification ({verdict.report}), so no engine is built from them; "
            "export again in a wider precision"
        )
    _require_memory(graphs)
    bundle.check(graphs)
    options = tuple(_options(choices, backend, trt.__version__, target) for target in targets)
    return Job(bundle, backend, trt.__version__, precision, graphs, _limits(manifest, choices), options, here)


def _precision(manifest: Manifest, wanted: Precision | None, path: Path) -> Precision:
    """The first there of the graphs that may be meant: a recipe's name alone means half-precision activations."""
    have = manifest.precisions()
    if wanted is not None and wanted.cache_dtype != wanted.dtype:
        raise UsageError(
            f"{wanted} graphs have a cache in 8 bits, which ONNX Runtime reads on the CPU and TensorRT does not; build "
            f"others: --precision {wanted.kind}"
        )
    meant = PREFERRED if wanted is None else wanted.flavours(PREFERRED[:2])
    for precision in meant:
        if precision in have:
            return precision
    raise UsageError(
        f"{path} has no {wanted or meant[0]} graphs for TensorRT (it has {', '.join(have) or 'none'}); "
        f"{how_to_make(meant[0], path)}"
    )


def _require_memory(graphs: Sequence[GraphEntry]) -> None:
    """
    Raises:
        ResourceError: the largest engine cannot be built in the memory that is free; the system would end the builder.
    """
    largest = max(graphs, key=lambda entry: entry.weight_bytes)
    needed, free = build_ram_bytes(largest.weight_bytes, largest.precision), available_bytes()
    if free is not None and needed > free:
        raise ResourceError(
            f"building the {largest.precision} {largest.component} needs about {needed / 2**30:.1f} GiB of memory and "
            f"{free / 2**30:.1f} GiB are free; build on a larger host (vlm-trt plan says what fits), or only the other "
            "engines with --component"
        )


def _limits(manifest: Manifest, choices: Choices) -> Limits:
    """The limits asked for: at most the bundle's, since cache and requests follow those."""
    known = manifest.limits
    for option, wanted, most in (
        ("--max-batch", choices.max_batch, known.max_batch),
        ("--max-images", choices.max_images, known.max_images),
    ):
        if wanted is not None and wanted > most:
            raise UsageError(f"{option} {wanted} is beyond the bundle's {most}; export with a larger {option}")
    return replace(
        known, max_batch=choices.max_batch or known.max_batch, max_images=choices.max_images or known.max_images
    )


def _options(choices: Choices, backend: str, version: str, target: str) -> BuildOptions:
    cache = choices.timing_cache
    if backend == "tensorrt-rtx" and cache is not None:
        raise UsageError(f"{backend} times no kernels while it builds, so it keeps no --timing-cache; leave it out")
    if backend == "tensorrt" and cache is None:
        cache = default_path(backend, version, target)
    if cache is not None:
        require_writable(cache)
    return BuildOptions(
        backend=backend,
        target=target,
        optimization_level=choices.optimization_level,
        workspace_bytes=None if choices.workspace_gib is None else int(choices.workspace_gib * 2**30),
        weight_streaming=choices.weight_streaming,
        timing_cache=cache,
    )


def _lint(job: Job, entry: GraphEntry, target: str, say: Callable[[str], None]) -> None:
    """
    Raises:
        UnsupportedError: the graph holds something that TensorRT would build wrong, slow, or not at all.
    """
    manifest = job.bundle.manifest
    graph = job.bundle.path / entry.graph.path
    findings = lint_graph(graph, entry.component, entry.precision, manifest.model, manifest.limits, target, job.backend)
    _judge(f"{graph} for {target}", findings, say)


def _judge(what: str, findings: Sequence[Finding], say: Callable[[str], None]) -> None:
    """Says the warnings.

    Raises:
        UnsupportedError: there are errors.
    """
    errors = [finding.sentence for finding in findings if finding.severity == "error"]
    for finding in findings:
        if finding.severity == "warning":
            say(f"{what}: {finding.sentence}")
    if errors:
        raise UnsupportedError(f"{what}: {'; '.join(errors)}")


def _build_one(
    job: Job,
    entry: GraphEntry,
    options: BuildOptions,
    staging: Path,
    say: Callable[[str], None],
    percent_bar: Callable[[str], AbstractContextManager[Bar | None]],
) -> EngineEntry:
    model = job.bundle.manifest.model
    shapes = profiles(entry.component, model, job.limits, entry.precision)
    relative = f"engines/{variant(job, options)}/{entry.component}.plan"
    plan = staging / relative
    plan.parent.mkdir(parents=True, exist_ok=True)
    with percent_bar(f"build {entry.component} {options.target}") as bar:
        done = 0

        def report(share: float) -> None:
            nonlocal done
            if bar is not None and int(100 * share) > done:
                bar.update(int(100 * share) - done)
                done = int(100 * share)

        built = built_apart(job.bundle.path / entry.graph.path, shapes, plan, options, report)
        report(1.0)
    found = inspect_plan(plan, Expected(entry.component, entry.precision, model, job.limits, shapes))
    _judge(f"{entry.component} engine for {options.target}", found.findings, say)
    return _entry(job, entry, options, shapes, FileEntry(relative, built.size, built.sha256), built)


def _entry(
    job: Job, entry: GraphEntry, options: BuildOptions, shapes: tuple[Profile, ...], plan: FileEntry, built: Built
) -> EngineEntry:
    return EngineEntry(
        component=entry.component,
        precision=entry.precision,
        backend=job.backend,
        version=job.version,
        target=options.target,
        gpu=None if job.device is None else job.device.description,
        plan=plan,
        graph=entry.identity,
        limits=job.limits,
        profiles=shapes,
        layers=built.layers,
        weights=built.weights,
        weight_streaming=options.weight_streaming,
        seconds=built.seconds,
        peak_ram_bytes=built.peak_ram_bytes,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def variant(job: Job, options: BuildOptions) -> str:
    """The folder's name: what it was built with and for, and eight digits that stand for graphs, limits, settings."""
    manifest = job.bundle.manifest
    graphs = (manifest.graph(component, job.precision) for component in manifest.model.components)
    settings: Sequence[Any] = (
        [entry.identity for entry in graphs if entry is not None], asdict(job.limits),
        options.optimization_level, options.workspace_bytes, options.weight_streaming,
    )  # fmt: skip
    digest = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
    return f"{job.backend}-{job.version}-{options.target}-{job.precision}-{digest}"
