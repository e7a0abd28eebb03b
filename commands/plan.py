"""`vlm-trt plan`: what the work will take, as a table, before any of it."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.config import Limits, ModelConfig, require_limits, usual_limits
from vlm_trt.bundle.signature import DTYPE_BYTES, FLOATS, Component, Precision
from vlm_trt.bundle.store import MANIFEST, Bundle
from vlm_trt.commands.terminal import say, size, table
from vlm_trt.engines.gpus import GPUS, Gpu, gpu_named
from vlm_trt.engines.plan import GIB, Machine, Plan, plan, require_fit, shortfalls
from vlm_trt.families.family import family, family_of
from vlm_trt.families.weights import Weight

_INT4_BLOCK = 128  # inputs that share a scale in the shipped recipe


def run(
    path: Path,
    precision: str | None,
    max_seq_tokens: int | None,
    max_batch: int | None,
    gpu: str | None,
    ram_gib: float | None,
    vram_gib: float | None,
    disk_gib: float | None,
    as_json: bool,
) -> None:
    model, known = _model(path)
    limits = replace(
        known, max_seq_tokens=max_seq_tokens or known.max_seq_tokens, max_batch=max_batch or known.max_batch
    )
    require_limits(model, limits)
    chosen = None if gpu is None else gpu_named(gpu)
    machine = Machine(
        ram_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if ram_gib is None else int(ram_gib * GIB),
        disk_bytes=_free_bytes(path) if disk_gib is None else int(disk_gib * GIB),
        gpu=chosen,
        vram_bytes=None if vram_gib is None else int(vram_gib * GIB),
    )
    (asked,) = Precision(precision or "fp16").flavours((Precision.FP16,))
    plans = {one: plan(model, limits, one, weight_bytes(model, one)) for one in dict.fromkeys((*FLOATS, asked))}
    if as_json:
        click.echo(json.dumps(_document(plans, machine), indent=2))
    else:
        _show(path, plans, machine)
    require_fit(plans[asked], _alternatives(model, plans, asked), machine)
    say(f"{asked} fits {_where(machine)}")


def _model(path: Path) -> tuple[ModelConfig, Limits]:
    """Sizes and limits of a bundle, or of a checkpoint with the limits that an export would take."""
    if (path / MANIFEST).exists():
        manifest = Bundle.open(path).manifest
        return manifest.model, manifest.limits
    kind = family_of(path)
    model = kind.read_config(path)
    kind.check_checkpoint(path, model)
    return model, usual_limits(model)


def _where(machine: Machine) -> str:
    if machine.gpu is not None:
        return f"the {machine.gpu.name}"
    return "this host; --gpu NAME asks of a GPU, too" if machine.vram_bytes is None else "the device"


def weight_bytes(model: ModelConfig, precision: Precision) -> dict[Component, int]:
    """Bytes of each graph's weights, quantized as the shipped recipe of that kind does it."""
    found = dict.fromkeys(Component, 0)
    for weight in family(model.family).weight_map(model).weights:
        found[weight.component] += _bytes_of(weight, precision)
    return found


def _bytes_of(weight: Weight, precision: Precision) -> int:
    """One weight: of a matrix, integers and their scales."""
    values, size = prod(weight.shape), 4 if weight.full_precision else DTYPE_BYTES[precision.dtype]
    matrix = len(weight.shape) == 2 and weight.name.endswith(".weight") and weight.name != "embedding.weight"
    if precision.quantization is None or not matrix:
        return values * size
    if precision.quantization == "int4" and weight.component is Component.DECODER and weight.name != "lm_head.weight":
        return values // 2 + values // _INT4_BLOCK * size
    outputs = weight.shape[0] if weight.name == "lm_head.weight" else weight.shape[1]
    return values + outputs * size


def _alternatives(model: ModelConfig, plans: Mapping[Precision, Plan], asked: Precision) -> list[tuple[str, Plan]]:
    """Smaller settings, the nearest first: fewer sequences, a shorter cache, half precision, 8 and 4 bits, and those
    together."""
    limits = plans[asked].limits
    narrower = (Precision.FP16, Precision.INT8_WEIGHT_FP16, Precision.INT4_FP16)
    smaller = dict.fromkeys((asked, *narrower) if asked.quantization is None else (asked, Precision.INT4_FP16))
    batches = range(limits.max_batch, 0, -1)
    lengths = [limits.max_seq_tokens // (1 << halvings) // 64 * 64 for halvings in range(8)]
    lengths = [n for n in lengths if n >= model.resampler.queries + 64]
    found = []
    for precision in smaller:
        weights = weight_bytes(model, precision)
        tried = [(batch, limits.max_seq_tokens) for batch in batches] + [(limits.max_batch, n) for n in lengths]
        for batch, length in [*tried, *((1, n) for n in lengths)]:
            words = [f"--precision {precision}"] if precision is not asked else []
            words += [f"--max-batch {batch}"] if batch != limits.max_batch else []
            words += [f"--max-seq-tokens {length}"] if length != limits.max_seq_tokens else []
            other = replace(limits, max_batch=batch, max_seq_tokens=length)
            if words:
                found.append((" ".join(words), plan(model, other, precision, weights)))
    return found


def _show(path: Path, plans: Mapping[Precision, Plan], machine: Machine) -> None:
    columns = list(plans.values())
    limits = columns[0].limits
    click.echo(
        f"{path}: {limits.max_seq_tokens} positions, {limits.max_batch} sequences at once, {limits.max_images} "
        "pictures per run\n"
    )
    rows: list[tuple[str, ...]] = [
        (f"weights, {component.replace('_', ' ')}", *(size(one.weight_bytes[component]) for one in columns))
        for component in Component
    ]
    rows += [
        ("cache of one sequence", *(size(one.kv_bytes_per_sequence) for one in columns)),
        (f"cache of {limits.max_batch}", *(size(one.kv_bytes) for one in columns)),
        ("device memory to run", *(size(one.vram_bytes) for one in columns)),
        ("memory to export", *(size(one.export_ram_bytes) for one in columns)),
        ("memory to build engines", *(size(one.build_ram_bytes) for one in columns)),
        ("disk, graphs and engines", *(size(one.disk_bytes) for one in columns)),
        ("export, minutes", *(f"{one.export_seconds / 60:.1f}" for one in columns)),
        ("build, minutes", *(f"{one.build_seconds / 60:.1f}" for one in columns)),
    ]
    click.echo(table(rows, ("", *(f" {precision}" for precision in plans))))
    click.echo(
        "\nA decode step of all sequences moves every weight and the whole cache once; its floor, and what fits:\n"
    )
    gpus = GPUS if machine.gpu is None else (machine.gpu,)
    header = ("GPU", "target", " memory", *(f" {precision}" for precision in plans))
    click.echo(table([_gpu_row(gpu, machine, columns) for gpu in gpus], header))


def _gpu_row(gpu: Gpu, machine: Machine, plans: list[Plan]) -> tuple[str, ...]:
    memory = gpu.memory_bytes if machine.vram_bytes is None else machine.vram_bytes
    return gpu.name, gpu.target, size(memory), *(_gpu_cell(gpu, memory, one) for one in plans)


def _gpu_cell(gpu: Gpu, memory: int, one: Plan) -> str:
    if needed := gpu.lacks(one.precision):
        return f"needs {needed}"
    return f"{one.floor_ms(gpu):.2f} ms" if one.vram_bytes <= memory else "does not fit"


def _document(plans: Mapping[Precision, Plan], machine: Machine) -> dict[str, Any]:
    """What `--json` prints."""
    gpus = GPUS if machine.gpu is None else (machine.gpu,)
    return {
        "plans": {
            precision.value: {
                **asdict(one),
                "weights": one.weights,
                "kv_bytes": one.kv_bytes,
                "vram_bytes": one.vram_bytes,
                "export_ram_bytes": one.export_ram_bytes,
                "disk_bytes": one.disk_bytes,
                "floor_ms": {gpu.name: one.floor_ms(gpu) for gpu in gpus},
                "shortfalls": shortfalls(one, machine),
            }
            for precision, one in plans.items()
        }
    }


def _free_bytes(path: Path) -> int:
    return shutil.disk_usage(path.absolute().parent).free
