"""`vlm-trt plan`: what each stage will take, as a table, before any of it."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.config import Limits, ModelConfig, require_limits, usual_limits, within
from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.manifest import Manifest
from vlm_trt.bundle.picture_rules import AnySize
from vlm_trt.bundle.precision import FLOATS, PUBLISHED, Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.commands import plan_fleet
from vlm_trt.commands.terminal import say, size, table
from vlm_trt.commands.weight_sizes import weight_bytes
from vlm_trt.engines.gpus import GPUS, Gpu, gpu_named
from vlm_trt.engines.plan import GIB, Machine, Plan, Stage, plan, require_fit, shortfalls
from vlm_trt.exporter.hub import checkpoint_folder
from vlm_trt.families.family import family, family_of
from vlm_trt.families.packing import read_packing
from vlm_trt.verification.memory import verification_needs

_EACH_BATCH = 32  # up to here every number of sequences is tried, above halves


@dataclass(frozen=True)
class Asked:
    """A model with its limits, and what a bundle already has of it."""

    model: ModelConfig
    limits: Limits
    manifest: Manifest | None  # of a bundle; None: a checkpoint
    packed: bool  # whether the checkpoint has its matrices in 4 bits itself

    def has(self, precision: Precision) -> bool:
        return self.manifest is not None and precision in self.manifest.precisions()

    def verified(self, precision: Precision) -> bool:
        verdict = None if self.manifest is None else self.manifest.verification(precision)
        return verdict is not None and verdict.passed

    def plan(self, precision: Precision, limits: Limits | None = None) -> Plan:
        """The estimate for these limits, or others."""
        chosen, floating = limits or self.limits, precision.floating
        floats = None
        if precision.quantization is not None:
            floats = 0 if self.has(floating) else sum(weight_bytes(self.model, floating).values())
        needs = verification_needs(family(self.model.family), self.model, chosen, floating)
        return plan(self.model, chosen, precision, weight_bytes(self.model, precision), needs, floats)


def run(
    path: Path,
    precision: str | None,
    stages: Sequence[str],
    max_seq_tokens: int | None,
    max_batch: int | None,
    min_pixels: int | None,
    max_pixels: int | None,
    revision: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    options = plan_fleet.taken(given, given["target"])
    if not (path / MANIFEST).exists():
        path = checkpoint_folder(path, revision=revision)
    elif revision is not None:
        raise UsageError(f"--revision is of a checkpoint, and {path} is a bundle; leave it out")
    model, known, manifest = _model(path)
    limits = replace(
        known,
        max_seq_tokens=max_seq_tokens or known.max_seq_tokens,
        max_batch=max_batch or known.max_batch,
        min_pixels=min_pixels or known.min_pixels,
        max_pixels=max_pixels or known.max_pixels,
    )
    require_limits(model, limits)
    asked, machine = Asked(model, limits, manifest, _packed(path, manifest)), _machine(path, **given)
    wanted = _wanted(path, precision, asked)
    chosen = _stages(stages, asked, wanted, machine)
    kind = PUBLISHED if asked.packed else None
    plans = {one: asked.plan(one) for one in dict.fromkeys((*(Precision.of(kind, one) for one in FLOATS), wanted))}
    fits = not shortfalls(plans[wanted], machine, chosen)
    question = plan_fleet.asked(options, model, plans[wanted], machine.gpu) if options is not None and fits else None
    if not as_json:
        _show(path, plans, machine)
    fleet = None if question is None else plan_fleet.fleet(question)
    if as_json:
        more = {} if fleet is None else {"fleet": plan_fleet.document(fleet)}
        click.echo(json.dumps(_document(plans, machine, chosen) | more, indent=2))
    elif fleet is not None:
        click.echo(f"\n{plan_fleet.shown(fleet)}")
    require_fit(plans[wanted], _alternatives(asked, wanted), machine, chosen)
    say(f"{wanted}: {_fits(chosen, machine)}")


def _packed(path: Path, manifest: Manifest | None) -> bool:
    if manifest is None:
        return read_packing(path) is not None
    return any(one.kind == PUBLISHED for one in manifest.precisions())


def _wanted(path: Path, precision: str | None, asked: Asked) -> Precision:
    """What has to fit: what was named, and what an export makes of it.

    Raises:
        UsageError: it cannot be made.
    """
    (wanted,) = Precision(precision or "fp16").flavours((Precision.FP16,))
    if not asked.packed and wanted.kind == PUBLISHED:
        raise UsageError(f"{path} has no 4-bit matrices of its own, which --precision {wanted} is about; leave it out")
    if asked.packed and wanted.quantization is not None:
        raise UsageError(
            f"{path} has 4-bit matrices of its own, which nothing is quantized from; leave out --precision {wanted}"
        )
    return Precision.of(PUBLISHED, wanted.floating) if asked.packed else wanted


def _machine(
    path: Path, target: str | None, ram_gib: float | None, vram_gib: float | None, disk_gib: float | None
) -> Machine:
    """What was given, and of what was not, this host."""
    return Machine(
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if ram_gib is None else int(ram_gib * GIB),
        disk_bytes=_free_bytes(path) if disk_gib is None else int(disk_gib * GIB),
        gpu=None if target is None else gpu_named(target),
        vram_bytes=None if vram_gib is None else int(vram_gib * GIB),
    )


def _model(path: Path) -> tuple[ModelConfig, Limits, Manifest | None]:
    """Sizes and limits of a bundle, or of a checkpoint with the limits that an export would take."""
    if (path / MANIFEST).exists():
        manifest = Bundle.open(path).manifest
        return manifest.model, manifest.limits, manifest
    kind = family_of(path)
    model = kind.read_config(path)
    kind.check_checkpoint(path, model)
    return model, usual_limits(model), None


def _stages(named: Sequence[str], asked: Asked, precision: Precision, machine: Machine) -> tuple[Stage, ...]:
    """What has to fit: what was named, or what is left to do on this host, and running where a device is named."""
    device = machine.device_bytes is not None
    if Stage.RUN in named and not device:
        raise UsageError("--for run asks of a device; name it with --target, or its memory with --vram-gib")
    if named:
        return tuple(stage for stage in Stage if stage in named)
    left = (
        (Stage.EXPORT, not asked.has(precision)),
        (Stage.VERIFY, not asked.verified(precision)),
        (Stage.RUN, device),
    )
    return tuple(stage for stage, wanted in left if wanted)


def _fits(stages: Sequence[Stage], machine: Machine) -> str:
    """What was asked about, and how to ask about the rest."""
    here = [stage.value for stage in stages if stage is not Stage.RUN]
    parts = [f"{' and '.join(here)} fit{'s' * (len(here) == 1)} this host"] if here else []
    if Stage.RUN in stages:
        parts.append(f"run fits the {'device' if machine.gpu is None else machine.gpu.name}")
    more = ["--for build asks of building engines"] if Stage.BUILD not in stages else []
    more += ["--target NAME of a GPU to run on"] if Stage.RUN not in stages else []
    return f"{'; '.join(parts) or 'exported and verified already'}" + (f" ({', '.join(more)})" if more else "")


def _alternatives(asked: Asked, precision: Precision) -> Iterator[tuple[str, Plan]]:
    """Other settings, the nearest first: smaller limits, half precision, 8 and 4 bits, and those together."""
    limits = asked.limits
    narrower = (Precision.FP16, *(() if precision is Precision.FP32 else (precision,)))
    others = (*(narrower if precision.quantization is None else ()), Precision.INT8_WEIGHT_FP16, Precision.INT4_FP16)
    if asked.packed:
        others = (Precision.PUBLISHED_INT4_FP16,)
    smaller = list(dict.fromkeys(_smaller(asked)))
    for one in dict.fromkeys((precision, *others)):
        for less in smaller:
            words = [f"--precision {one}"] if one is not precision else []
            words += [f"--max-batch {less.max_batch}"] if less.max_batch != limits.max_batch else []
            words += [f"--max-seq-tokens {less.max_seq_tokens}"] if less.max_seq_tokens != limits.max_seq_tokens else []
            words += [f"--max-pixels {less.max_pixels}"] if less.max_pixels != limits.max_pixels else []
            if words:
                yield " ".join(words), asked.plan(one, less)


def _smaller(asked: Asked) -> Iterator[Limits]:
    """Limits as asked for and then smaller: fewer sequences, a shorter cache, smaller pictures, and those together."""
    limits = asked.limits
    batches = [*(limits.max_batch >> halvings for halvings in range(5) if limits.max_batch >> halvings > _EACH_BATCH)]
    batches += range(min(limits.max_batch, _EACH_BATCH), 0, -1)
    yield from (replace(limits, max_batch=batch) for batch in batches)
    yield from _shorter(asked, limits)
    yield from _shorter(asked, replace(limits, max_batch=1))
    areas = [replace(limits, max_pixels=pixels) for pixels in _smaller_areas(asked)]
    yield from areas
    yield from (one for less in areas for one in _shorter(asked, replace(less, max_batch=1)))


def _shorter(asked: Asked, limits: Limits) -> Iterator[Limits]:
    """The limits, and shorter caches that still hold a picture."""
    least = within(asked.model, limits).most_picture_tokens + 64
    lengths = (limits.max_seq_tokens // (1 << halvings) // 64 * 64 for halvings in range(8))
    yield from (replace(limits, max_seq_tokens=length) for length in lengths if length >= least)


def _smaller_areas(asked: Asked) -> Iterator[int]:
    """Smaller bounds of pictures of any size, the largest first: in steps of an eighth, whole tokens."""
    rule = within(asked.model, asked.limits).pictures
    if not isinstance(rule, AnySize):
        return
    pixels, token = rule.max_pixels, asked.model.any_size.token_pixels**2
    while (pixels := pixels * 7 // 8 // token * token) >= max(rule.min_pixels, token):
        yield pixels


def _show(path: Path, plans: Mapping[Precision, Plan], machine: Machine) -> None:
    columns = list(plans.values())
    limits = columns[0].limits
    bounds = f" of up to {limits.max_pixels} pixels" if limits.max_pixels is not None else ""
    click.echo(
        f"{path}: {limits.max_seq_tokens} positions, {limits.max_batch} sequences at once, {limits.max_images} "
        f"pictures per run{bounds}\n"
    )
    rows: list[tuple[str, ...]] = [
        (f"weights, {component.replace('_', ' ')}", *(size(one.weight_bytes[component]) for one in columns))
        for component in columns[0].weight_bytes
        if component.has_weights
    ]
    rows += [
        ("cache of one sequence", *(size(one.kv_bytes_per_sequence) for one in columns)),
        (f"cache of {limits.max_batch}", *(size(one.kv_bytes) for one in columns)),
        (f"scores of {columns[0].patches} patches", *(size(one.score_bytes) for one in columns)),
        *_stage_rows(columns),
        ("run: device memory", *(size(one.vram_bytes) for one in columns)),
    ]
    click.echo(table(rows, ("", *(f" {precision}" for precision in plans))))
    click.echo(
        "\nA decode step of all sequences moves every weight and the whole cache once; its floor, and what fits:\n"
    )
    gpus = GPUS if machine.gpu is None else (machine.gpu,)
    header = ("GPU", "target", " memory", *(f" {precision}" for precision in plans))
    click.echo(table([_gpu_row(gpu, machine, columns) for gpu in gpus], header))


def _stage_rows(plans: Sequence[Plan]) -> list[tuple[str, ...]]:
    """Memory, disk and time of each piece of work on a host."""
    rows: list[tuple[str, ...]] = []
    for stage in plans[0].needs:
        needs = [one.needs[stage] for one in plans]
        rows.append((f"{stage}: memory", *(size(one.ram_bytes) for one in needs)))
        if any(one.disk_bytes for one in needs):
            rows.append((f"{stage}: disk", *(size(one.disk_bytes) for one in needs)))
        if any(one.seconds is not None for one in needs):
            rows.append(
                (f"{stage}: minutes", *("" if one.seconds is None else f"{one.seconds / 60:.1f}" for one in needs))
            )
    return rows


def _gpu_row(gpu: Gpu, machine: Machine, plans: list[Plan]) -> tuple[str, ...]:
    memory = gpu.memory_bytes if machine.vram_bytes is None else machine.vram_bytes
    return gpu.name, gpu.target, size(memory), *(_gpu_cell(gpu, memory, one) for one in plans)


def _gpu_cell(gpu: Gpu, memory: int, one: Plan) -> str:
    if needed := gpu.lacks(one.precision):
        return f"needs {needed}"
    return f"{one.floor_ms(gpu):.2f} ms" if one.vram_bytes <= memory else "does not fit"


def _document(plans: Mapping[Precision, Plan], machine: Machine, stages: Sequence[Stage]) -> dict[str, Any]:
    """What `--json` prints."""
    gpus = GPUS if machine.gpu is None else (machine.gpu,)
    return {
        "stages": stages,
        "plans": {
            precision.value: {
                **asdict(one),
                "weights": one.weights,
                "kv_bytes": one.kv_bytes,
                "vram_bytes": one.vram_bytes,
                "floor_ms": {gpu.name: one.floor_ms(gpu) for gpu in gpus},
                "shortfalls": shortfalls(one, machine, stages),
            }
            for precision, one in plans.items()
        },
    }


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.absolute().parent).free
