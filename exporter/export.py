"""Checkpoint folder in, bundle out: trace each graph, stream its weights, publish all of it at once."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig, require_limits, usual_limits
from vlm_trt.bundle.entries import FileEntry, GraphEntry
from vlm_trt.bundle.errors import IncompatibleError, UsageError
from vlm_trt.bundle.leftovers import destination
from vlm_trt.bundle.manifest import SCHEMA, Manifest, Source
from vlm_trt.bundle.precision import PUBLISHED, Precision
from vlm_trt.bundle.progress import MakeBar, no_bar
from vlm_trt.bundle.staging import require_room, staging_folder
from vlm_trt.bundle.store import (
    Bundle,
    file_entry,
    graph_path,
    publish_graphs,
    publish_new,
    staging_of,
    weights_path,
)
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.graph_files import GraphPlan, graph_files, graph_plan
from vlm_trt.exporter.packed_weights import GraphWeights, graph_weights
from vlm_trt.exporter.references import require_references
from vlm_trt.exporter.trace import OPSET
from vlm_trt.exporter.weight_stream import plan_weights, stream_weights
from vlm_trt.families.family import Family, family_of

# Room for the graphs themselves, the tokenizer and the manifest.
_SMALL_FILES_BYTES = 16 << 20


@dataclass(frozen=True)
class Choices:
    """What to export; None takes the default, or what an existing bundle has."""

    precision: Precision  # of a checkpoint that is in 4 bits itself, the type of what is not
    components: tuple[Component, ...] = ()  # none: all that the model has
    max_seq_tokens: int | None = None
    max_batch: int | None = None
    max_images: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    adapters: tuple[Path, ...] = ()  # LoRA adapters to merge into the checkpoint, in order
    force: bool = False  # replace graphs the bundle has


@dataclass(frozen=True)
class Done:
    precision: Precision
    written_bytes: int
    seconds: float


@dataclass(frozen=True)
class Job:
    """Everything an export was asked to do, resolved and checked before anything is written."""

    checkpoint: Checkpoint
    family: Family
    model: ModelConfig
    limits: Limits
    precision: Precision
    weights: dict[Component, GraphWeights]
    existing: Bundle | None


def export(
    checkpoint: Path,
    bundle: Path,
    choices: Choices,
    say: Callable[[str], None] = lambda _: None,
    byte_bar: MakeBar = no_bar,
) -> Done:
    """Writes the graphs of one precision, as a new bundle or into an existing one.

    Args:
        checkpoint: folder of a published checkpoint.
        bundle: the folder to make, or a bundle of the same checkpoint to add to.
        choices: precision, components and limits.
        say: told what runs now.
        byte_bar: a progress bar for a label and a number of bytes.
    Raises:
        CheckpointError, UnsupportedError: the checkpoint cannot be exported; nothing is written.
        UsageError: the choices do not fit the bundle or the model.
        StorageError: no room, or no permission.
    """
    started = perf_counter()
    job = _prepare(checkpoint, bundle, choices, say)
    total = sum(plan_weights(own.weights, job.precision)[1] for own in job.weights.values())
    require_room(bundle, total + _SMALL_FILES_BYTES)
    plans = [graph_plan(component, job.precision, own) for component, own in job.weights.items()]
    with (
        staging_folder(staging_of(bundle) if job.existing is None else bundle / "graphs") as staging,
        graph_files(plans, job.model, job.limits, total) as graph_file,
    ):
        entries = tuple(_write_graph(job, plan, graph_file, staging, say, byte_bar) for plan in plans)
        if job.existing is not None:
            publish_graphs(job.existing, staging, entries)
        else:
            publish_new(staging, bundle, _new_manifest(job, staging, entries))
    return Done(job.precision, total, perf_counter() - started)


def _prepare(folder: Path, target: Path, choices: Choices, say: Callable[[str], None]) -> Job:
    kind = family_of(folder)
    model = kind.read_config(folder)
    kind.check_checkpoint(folder, model)
    weight_map = kind.weight_map(model)
    checkpoint = Checkpoint(folder, weight_map.renames, choices.adapters)
    checkpoint.check(weight_map)
    precision = choices.precision if checkpoint.packed is None else Precision.of(PUBLISHED, choices.precision)
    wanted = choices.components or model.components
    if lacking := [one for one in wanted if one not in model.components]:
        raise UsageError(f"{folder} is of a model without {lacking[0]}; it has {', '.join(model.components)}")
    existing = destination(target, say)
    if existing is not None:
        _require_same_source(existing, checkpoint, kind)
        _require_free(existing, choices, precision, wanted)
    return Job(
        checkpoint=checkpoint,
        family=kind,
        model=model,
        limits=_limits(model, choices, existing),
        precision=precision,
        weights={c: graph_weights(weight_map.weights, c, checkpoint, precision) for c in wanted},
        existing=existing,
    )


def _limits(model: ModelConfig, choices: Choices, existing: Bundle | None) -> Limits:
    """The limits asked for, which an existing bundle has fixed."""
    known = None if existing is None else existing.manifest.limits
    defaults = known or usual_limits(model)
    limits = Limits(
        choices.max_seq_tokens or defaults.max_seq_tokens,
        choices.max_batch or defaults.max_batch,
        choices.max_images or defaults.max_images,
        choices.min_pixels or defaults.min_pixels,
        choices.max_pixels or defaults.max_pixels,
    )
    if existing is not None and limits != known:
        raise UsageError(
            f"{existing.path} is built for {_in_words(existing.manifest.limits)}, and {_in_words(limits)} are asked "
            "for; leave the limits out, or export to another folder"
        )
    require_limits(model, limits)
    return limits


def _in_words(limits: Limits) -> str:
    found = [f"{limits.max_seq_tokens} positions", f"{limits.max_batch} sequences", f"{limits.max_images} pictures"]
    if limits.min_pixels is not None and limits.max_pixels is not None:
        found[-1] += f" of {limits.min_pixels} to {limits.max_pixels} pixels"
    return f"{', '.join(found[:-1])} and {found[-1]}"


def _require_same_source(existing: Bundle, checkpoint: Checkpoint, kind: Family) -> None:
    if existing.manifest.source.files != checkpoint.source_hashes(kind.source_files):
        raise IncompatibleError(
            f"{existing.path} was made from another checkpoint ({_described(existing.manifest.source)}); "
            "export to another folder"
        )


def _described(source: Source) -> str:
    return " and ".join((source.checkpoint, *source.adapters))


def _require_free(existing: Bundle, choices: Choices, precision: Precision, wanted: Sequence[Component]) -> None:
    have = [c for c in wanted if existing.manifest.graph(c, precision) is not None]
    if have and not choices.force:
        raise UsageError(f"{existing.path} already has {precision} graphs ({', '.join(have)}); --force replaces them")


def _write_graph(
    job: Job,
    plan: GraphPlan,
    graph_file: Callable[[GraphPlan], bytes],
    staging: Path,
    say: Callable[[str], None],
    byte_bar: MakeBar,
) -> GraphEntry:
    component, precision = plan.component, plan.precision
    graph = graph_path(component, precision)
    (staging / graph).parent.mkdir(parents=True, exist_ok=True)
    weights = _write_weights(job, plan, staging, byte_bar) if component.has_weights else None
    say(f"trace {component} ({precision})")
    (staging / graph).write_bytes(graph_file(plan))
    require_references(staging / graph, None if weights is None else staging / weights.path)
    return GraphEntry(component, precision, OPSET, graph=file_entry(staging, graph), weights=weights)


def _write_weights(job: Job, plan: GraphPlan, staging: Path, byte_bar: MakeBar) -> FileEntry:
    component, path = plan.component, weights_path(plan.component, plan.precision)
    with byte_bar(f"write {component}", plan.places[-1].offset + plan.places[-1].length) as bar:
        on_bytes = (lambda _: None) if bar is None else bar.update
        own, target = job.weights[component].weights, staging / path
        digest = stream_weights(own, job.model, job.checkpoint, plan.precision, target, on_bytes)
    return file_entry(staging, path, digest)


def _new_manifest(job: Job, staging: Path, entries: tuple[GraphEntry, ...]) -> Manifest:
    name = job.family.tokenizer_file
    tokenizer = f"tokenizer/{name}"
    (staging / "tokenizer").mkdir()
    shutil.copyfile(job.checkpoint.folder / name, staging / tokenizer)
    return Manifest(
        schema=SCHEMA,
        version=version("vlm-trt"),
        model=job.model,
        limits=job.limits,
        source=Source(
            str(job.checkpoint.folder.resolve()),
            job.checkpoint.source_hashes(job.family.source_files),
            tuple(str(one.folder.resolve()) for one in job.checkpoint.adapters),
        ),
        tokenizer=file_entry(staging, tokenizer),
        graphs=entries,
    )
