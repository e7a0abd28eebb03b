"""`vlm-trt diagnose`: a table of the first values that are off, what is proposed, and what came of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.component import PIPELINE
from vlm_trt.bundle.errors import UsageError, VerificationError
from vlm_trt.bundle.leftovers import open_to_write
from vlm_trt.bundle.precision import FLOATS, Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.calibration.gate import as_text
from vlm_trt.calibration.prepare import Choices
from vlm_trt.calibration.quantize import quantize
from vlm_trt.calibration.recipe import Kind, Recipe, recipe_of
from vlm_trt.calibration.report import read_report, write_report
from vlm_trt.commands.quantize import questions, shown
from vlm_trt.commands.terminal import byte_bar, count_bar, figure, say, table
from vlm_trt.diagnosis.compare import Deviation
from vlm_trt.diagnosis.diagnose import Diagnosis, as_json, diagnose, islands, samples_of, verification_samples
from vlm_trt.diagnosis.islands import Island
from vlm_trt.diagnosis.islands import as_json as islands_json
from vlm_trt.diagnosis.layers import added, costliest
from vlm_trt.evaluation.dataset import SYNTHETIC
from vlm_trt.verification.samples import Sample

_SHOWN = 6


def run(
    bundle: Path,
    precision: str,
    samples: Path | None,
    mend: bool,
    against: Path | None,
    evaluate: str | None,
    as_json: bool,
) -> None:
    opened = open_to_write(bundle, say)
    wanted = _precision(opened, Precision(precision))
    if wanted.quantization is not None and against is not None:
        raise UsageError("quantized graphs are compared with the float graphs of the bundle; leave out --against")
    asked = verification_samples(opened) if samples is None else samples_of(opened, samples)
    if wanted.quantization is None and evaluate is not None:
        raise UsageError("--evaluate is about quantized graphs; fp16 and bf16 ones are verified, leave it out")
    found = diagnose(opened, wanted, asked, say=_step)
    if wanted.quantization is None:
        _half(opened, found, asked, mend, against, as_json)
    else:
        _quantized(opened, found, samples, mend, evaluate, as_json)


def _step(what: str) -> None:
    say(f"  {what} ...")


def _precision(bundle: Bundle, wanted: Precision) -> Precision:
    """Of what the word may mean, the first that is there."""
    return next((one for one in wanted.flavours(FLOATS) if one in bundle.manifest.precisions()), wanted)


def _half(
    bundle: Bundle, found: Diagnosis, asked: list[Sample], wanted: bool, against: Path | None, printed_json: bool
) -> None:
    verdict = bundle.manifest.verification(found.precision)
    if found.sound and verdict is not None and not verdict.passed:
        found = found.tightened()
        say(
            "every value is inside the tolerance, and yet the graphs failed verification: errors add up. Off by more "
            f"than {found.tolerance.relative:.1e}, or with a cosine below {found.tolerance.cosine:.6f}, are"
        )
    if not printed_json:
        _show(found)
    try:
        proposal = islands(bundle, found)
    except VerificationError:  # of what no island mends: what was found stands in the report
        _write(bundle, found, {})
        raise
    content = _write(bundle, found, {"islands": islands_json(proposal)})
    if printed_json and (found.sound or not wanted):
        click.echo(as_text(content), nl=False)
    if found.sound:
        say(f"no value of the {found.precision} graphs is off; there is nothing to mend")
        return
    for component, island in proposal.items():
        say(f"proposed: {len(island.nodes)} nodes of the {component} in fp32: {_named(found, island)}")
    if not wanted:
        raise VerificationError(
            f"{bundle.path}: the {found.precision} graphs are off; let the nodes to blame compute in fp32: "
            f"vlm-trt diagnose {bundle.path} --precision {found.precision} --mend"
        )
    from vlm_trt.diagnosis.mend import mend  # needs torch, which finding the fault does not

    done = mend(bundle, found, asked, against, _step)
    content = _write(bundle, done.after, {"islands": islands_json(done.islands), "mended": True})
    if printed_json:
        click.echo(as_text(content), nl=False)
    count = sum(len(island.nodes) for island in done.islands.values())
    say(
        f"mended and verified: {found.precision} with {count} nodes in fp32, {len(done.report.figures)} comparisons; "
        "engines built from the graphs before are stale"
    )


def _quantized(
    bundle: Bundle, found: Diagnosis, samples: Path | None, wanted: bool, evaluate: str | None, printed_json: bool
) -> None:
    errors = added(bundle, found)
    layers = costliest(errors)
    content = _write(bundle, found, {"layers": [asdict(one) for one in errors], "float": layers})
    if printed_json:
        click.echo(as_text(content), nl=False)
    else:
        _show(found)
    say(f"half of the error is added by {len(layers)} of {len(errors)} layers; a recipe leaves them in float by")
    click.echo("[layers]\n" + "\n".join(f'"{layer}" = "float"' for layer in layers), err=printed_json)
    if not wanted:
        _require_held(bundle, found)
        return
    recipe = _recipe(bundle, found, layers)
    choices = Choices(recipe, found.reference, SYNTHETIC if samples is None else str(samples), force=True)
    report = quantize(
        bundle.path, choices, questions(bundle.path, evaluate or SYNTHETIC, None), say, byte_bar, count_bar
    )
    assert report.verdict is not None
    click.echo(shown(report.verdict), err=printed_json)
    say(f"mended and judged: {report.precision} with {len(layers)} layers in {found.reference}; {report.path}")


def _require_held(bundle: Bundle, found: Diagnosis) -> None:
    """Quantized graphs are off by design: what counts is whether their answers held.

    Raises:
        VerificationError: values are off, and the answers were not judged, or did not hold.
    """
    verdict, command = bundle.manifest.verification(found.precision), f"{bundle.path} --precision {found.precision}"
    if verdict is not None and verdict.passed:
        say(f"the answers of the {found.precision} graphs held ({verdict.report}), so nothing has to be mended")
    elif not found.sound:
        raise VerificationError(
            f"{bundle.path}: the {found.precision} graphs are off, and their answers "
            f"{'were not judged' if verdict is None else 'did not hold'}; leave the layers above in float: vlm-trt "
            f"diagnose {command} --mend, or judge them as they are: vlm-trt verify {command}"
        )


def _recipe(bundle: Bundle, found: Diagnosis, layers: tuple[str, ...]) -> Recipe:
    """The one that the graphs were made by, with those layers in float."""
    made, known = bundle.manifest.quantization(found.precision), read_report(bundle, found.precision).get("recipe")
    if made is None or not isinstance(known, dict):
        raise UsageError(
            f"{bundle.path}: how the {found.precision} graphs were made is not recorded; quantize them again by a "
            "recipe with the lines above"
        )
    kept = {**known.get("layers", {}), **dict.fromkeys(layers, Kind.FLOAT)}
    return recipe_of({**known, "max_drop": made.max_drop, "layers": kept}, f"the recipe of {bundle.path}")


def _write(bundle: Bundle, found: Diagnosis, more: dict[str, Any]) -> dict[str, Any]:
    """What was found, into the bundle."""
    content = {**as_json(found), **more}
    target = bundle.path / "reports" / f"diagnosis-{found.precision}.json"
    write_report(target, content)
    say(f"  wrote {target}")
    return content


def _show(found: Diagnosis) -> None:
    """How much is off in each component, and where that begins."""
    for component in PIPELINE:
        seen, off, begin = found.deviations[component], found.off(component), found.begin(component)
        say(f"{component}: {len(off)} of {len(seen)} values are off" + (", beginning with" if begin else ""))
        if begin:
            header = ("value", "operator", "part", " relative", " cosine", " largest", "sample")
            click.echo(table([_row(one) for one in begin[:_SHOWN]], header))


def _row(one: Deviation) -> tuple[str, ...]:
    return (
        one.pair.found, one.pair.operator, one.pair.part,
        "not finite" if one.relative == float("inf") else f"{one.relative:.2e}",
        figure(one.cosine), f"{one.magnitude:.3g}", one.sample,
    )  # fmt: skip


def _named(found: Diagnosis, island: Island) -> str:
    """The parts of the model that an island lies in."""
    parts = [one.pair.part for one in found.deviations[island.component] if one.pair.node in island.nodes]
    return ", ".join(dict.fromkeys(parts))
