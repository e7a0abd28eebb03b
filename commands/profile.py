"""`vlm-trt profile`: tables of what every stage takes and how far it is from its floor; reports as files."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.leftovers import open_to_write
from vlm_trt.bundle.output import require_output_folder, write_outputs
from vlm_trt.commands.baseline import chosen
from vlm_trt.commands.terminal import count_bar, say, size, table
from vlm_trt.profiling.check import read_profile, require_points, require_same_kind, require_stages, slower
from vlm_trt.profiling.compare import Comparison, what_it_means
from vlm_trt.profiling.document import document, lines, table_csv, trace
from vlm_trt.profiling.html import report
from vlm_trt.profiling.layers import WHAT_A_SPREAD_MEANS
from vlm_trt.profiling.metrics import STAGES
from vlm_trt.profiling.pairing import Mine, compare_with, compare_with_torch, require_same_model, require_torch
from vlm_trt.profiling.profile import Profile, profile, swept
from vlm_trt.profiling.recorded import Recorded, recorded
from vlm_trt.profiling.roofline import Gap
from vlm_trt.profiling.statistics import Summary
from vlm_trt.profiling.workload import Workload
from vlm_trt.runtime.choice import Choice, choose
from vlm_trt.runtime.environment import environment

TORCH = "torch"
NEW_TOKENS = 32
_SHOWN_LAYERS = 3  # of each stage
_FILES = ("report.html", "trace.json", "profile.jsonl", "profile.csv", "profile.json")


def run(
    bundle: Path,
    batch: Sequence[int] | None,
    images: Sequence[int] | None,
    prompt_tokens: Sequence[int] | None,
    new_tokens: int | None,
    iterations: int,
    warmup: int,
    baselines: Sequence[str],
    least_agreement: float | None,
    check: Path | None,
    allowed: float,
    stages: Sequence[str],
    layers: bool,
    output: Path | None,
    as_json: bool,
    **where: Any,
) -> None:
    if stages and check is None:
        raise UsageError("--stage says what --check looks at; give an earlier profile with it")
    earlier = None if check is None else read_profile(check)
    if output is not None:
        require_output_folder(output, _FILES, read=[] if check is None else [check])
        if output.resolve().is_relative_to(bundle.resolve()):
            open_to_write(bundle, say)
    choice = choose(bundle, precision=where["precision"], **_options(**where))
    points = _points(batch, images, prompt_tokens, new_tokens, earlier)
    if earlier is not None:
        _require_comparable(choice, earlier, points, stages)
    others = [chosen(bundle, name, _options(**where)) for name in baselines if name != TORCH]
    for other in others:  # before anything is measured
        require_same_model(choice, other)
    if TORCH in baselines:
        require_torch(choice, points[0])
    say(f"load {choice.precision} on {choice.backend.name}")
    mine = Mine(choice, choice.load())
    found = profile(choice, mine.model, points, iterations, warmup, say, count_bar, per_layer=layers)
    comparisons = [compare_with(mine, other, points[0], iterations, least_agreement, count_bar) for other in others]
    if TORCH in baselines:
        comparisons.append(compare_with_torch(mine, points[0], iterations, count_bar))
    written = document(found, [asdict(one) for one in comparisons])
    if output is not None:
        _write(output, found, written)
    click.echo(json.dumps(written, indent=1) if as_json else _shown(found, comparisons))
    if output is not None:
        say(f"wrote profile.json, .csv, .jsonl, trace.json and report.html to {output}")
    if earlier is not None:
        _require_not_slower(recorded(written), earlier, allowed, stages)


def _points(
    batch: Sequence[int] | None,
    images: Sequence[int] | None,
    prompt_tokens: Sequence[int] | None,
    new_tokens: int | None,
    earlier: Recorded | None,
) -> list[Workload]:
    """What was asked for; a check that asks for nothing measures all points of the earlier profile."""
    values = {"batch": batch or (), "images": images or (), "prompt_tokens": prompt_tokens or ()}
    if earlier is not None and new_tokens is None and not any(values.values()):
        return [point.workload for point in earlier.points]
    first = {axis: own[0] for axis, own in values.items() if own}
    return swept(Workload(**first, new_tokens=new_tokens or NEW_TOKENS), values)


def _require_comparable(choice: Choice, earlier: Recorded, points: Sequence[Workload], stages: Sequence[str]) -> None:
    """
    Raises:
        UsageError: what is about to be measured could not be checked against the earlier profile.
    """
    around = environment()
    now = {
        "family": choice.bundle.manifest.model.family,
        "precision": choice.precision.value,
        "backend": choice.backend.name,
        "processor": str(around["gpu"] or around["processor"]),
    }
    require_same_kind(now, earlier)
    require_points(earlier, points)
    require_stages(earlier, stages)


def _options(precision: str | None, backend: str, threads: int | None, unverified: bool) -> dict[str, Any]:
    """Of `choose`, all but the precision, which is the first bundle's alone."""
    return {"backend": backend, "threads": threads, "allow_unverified": unverified}


def _write(output: Path, found: Profile, written: Mapping[str, Any]) -> None:
    """All files; profile.json, which `--check` reads, when the others are there."""
    contents = (
        report(json.loads(json.dumps(written))),
        json.dumps(trace(found)),
        "".join(f"{line}\n" for line in lines(found)),
        table_csv(written),
        json.dumps(written, indent=1) + "\n",
    )
    write_outputs(output, dict(zip(_FILES, contents, strict=True)))


def _require_not_slower(now: Recorded, before: Recorded, allowed: float, stages: Sequence[str]) -> None:
    """
    Raises:
        VerificationError: a stage has become slower than allowed.
    """
    found = slower(now, before, allowed, stages)
    if found:
        raise VerificationError(f"slower than the earlier profile: {'; '.join(str(one) for one in found)}")
    say(
        f"nothing is slower than the earlier profile by more than {allowed:.0%} and its noise, at {len(now.points)} of "
        f"its {len(before.points)} points"
    )


def _shown(found: Profile, comparisons: Sequence[Comparison]) -> str:
    parts = []
    for point in found.points:
        rows = [_row(name, one) for name, one in point.requests.items() if one.unit == "ms"]
        rows += [_row(name, one, point.roofline.get(name)) for name, one in point.stages.items()]
        header = (point.measured.workload.label, " median ms", " p90", " p99", " std", " floor ms", " × floor", "limit")
        parts.append(table(rows, header))
        parts.append(", ".join(f"{name} {one.avg:.2f} {one.unit}" for name, one in point.rates.items()))
    parts += [_layers(found)] if found.layers else []
    parts += [_compared(one) for one in comparisons]
    return "\n\n".join((*parts, _ceilings(found)))


def _row(name: str, one: Summary, gap: Gap | None = None) -> tuple[str, ...]:
    floor = ("", "", "") if gap is None else (f"{gap.floor_ms:.3f}", f"{gap.times_the_floor:.2f}", gap.limited_by)
    return (name, f"{one.p50:.3f}", f"{one.p90:.3f}", f"{one.p99:.3f}", f"{one.std:.3f}", *floor)


def _layers(found: Profile) -> str:
    """The parts that take most time in each stage."""
    rows = [
        (
            one.stage, one.layer, one.part, one.operator, f"{one.milliseconds:.3f}", f"{one.low:.3f} … {one.high:.3f}",
            f"{one.share:.1%}",
        )
        for stage in STAGES
        for one in [layer for layer in found.layers if layer.stage == stage][:_SHOWN_LAYERS]
    ]  # fmt: skip
    header = ("most time in", "layer", "part", "operator", " median ms", " p10 … p90", " of the stage")
    return f"{table(rows, header)}\n{WHAT_A_SPREAD_MEANS}"


def _compared(one: Comparison) -> str:
    rows = [
        (ratio.stage, f"{ratio.mine_ms:.3f}", f"{ratio.other_ms:.3f}", f"{ratio.ratio:.3f}",
         f"{ratio.low:.3f} … {ratio.high:.3f}")
        for ratio in one.ratios
    ]  # fmt: skip
    title = f"against {one.other}"
    return (
        f"{table(rows, (title, ' ms', ' its ms', ' its / ours', ' 95 %'))}\n"
        f"{one.pairs} pairs; {what_it_means(one.same_tokens, one.parted_at)}"
    )


def _ceilings(found: Profile) -> str:
    limits, machine = found.ceilings, ""
    if limits is not None:
        integer = limits.integer_operations_per_second
        machine = (
            f"; this machine moves {limits.bytes_per_second / 1e9:.1f} GB/s and computes "
            f"{limits.operations_per_second / 1e9:.0f} billion operations a second"
            + ("" if integer is None else f", {integer / 1e9:.0f} in 8-bit integers")
        )
    return (
        f"{found.label} in {found.precision} on {found.backend}: loaded in {found.load_ms:.0f} ms, peak memory "
        f"{size(found.peak_rss_bytes)}{machine}"
    )
