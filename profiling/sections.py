"""The sections of a report: what each of them says about a profile, or None where there is nothing to say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vlm_trt.profiling import figures
from vlm_trt.profiling.charts import figure, legend
from vlm_trt.profiling.compare import what_it_means
from vlm_trt.profiling.layers import WHAT_A_SPREAD_MEANS
from vlm_trt.profiling.markup import Html, details, joined, milliseconds, number, scaled, share, size, table, tag, words
from vlm_trt.profiling.metrics import STAGES
from vlm_trt.profiling.profile import AXES
from vlm_trt.runtime.timing import PARTS

LISTED = 25  # layers of each stage
_LONG = 56  # characters of a layer's name

Values = Mapping[str, Any]
Section = Callable[[Values], Html | None]


def timeline(found: Values) -> Html | None:
    point = found["points"][0]
    spans = point["timeline"]
    if not spans:
        return None
    shared = ", and those of a decode step, which all requests share, in one of their own"
    several = shared if len({one["request"] for one in spans}) > 1 else ""
    return joined(
        [
            _how(
                f"The iteration with the median duration, {point['label']}: time runs to the right, every bar is one "
                f"run of a stage, the stages of a request are in its row{several}."
            ),
            legend(figures.legend_of(spans)),
            figures.timeline(spans),
        ]
    )


def waterfall(found: Values) -> Html | None:
    spans = found["points"][0]["timeline"]
    if not spans:
        return None
    text = (
        f"The same iteration, {milliseconds(figures.end(spans))}, all runs of a stage together, how many and how long "
        "each: a bar begins where the one above ends, and the longest are where time goes."
    )
    copies = {stage: taken for stage, taken in figures.totals(spans).items() if stage in PARTS}
    if copies:
        said = " and ".join(f"{words(stage)} took {milliseconds(taken)}" for stage, taken in copies.items())
        text += f" Within the stages, copies from {said}."
    return joined([_how(text), figures.waterfall(spans)])


def latencies(found: Values) -> Html | None:
    samples = found["points"][0]["samples"]
    kinds = (("time_to_first_token_ms", "Time to first token"), ("inter_token_ms", "Between two tokens"))
    shown = [figures.distribution(name, samples[key]) for key, name in kinds if samples.get(key)]
    if not shown:
        return None
    text = (
        f"All samples of {found['points'][0]['label']}: half of them are left of p50, all but a hundredth left of p99; "
        "few samples are dots in the order of measurement, many are counted in bars. A narrow heap is a steady machine."
    )
    return joined([_how(text), tag("div", *shown, class_="side-by-side")])


_SWEPT = (
    ("time_to_first_token", "p50", "Time to first token, p50"),
    ("inter_token_latency", "p50", "Inter-token latency, p50"),
    ("output_token_throughput", "avg", "Output tokens per second"),
)


def sweep(found: Values) -> Html | None:
    parts = [part for axis in AXES if (part := _varied(found["points"], axis)) is not None]
    if not parts:
        return None
    text = "One thing is varied at a time, the others stay as in the first point: low and flat is good for latencies,"
    return joined([_how(f"{text} high for tokens per second."), *parts])


def _varied(points: Sequence[Values], axis: str) -> Html | None:
    """The curves of one axis: of the points that differ from the first in nothing else."""
    base = points[0]["workload"]
    own = [one for one in points if all(one["workload"][name] == value for name, value in base.items() if name != axis)]
    own = [one for one in own if one["workload"][axis] is not None]
    if len(own) < 2:
        return None
    shown = []
    for metric, field, name in _SWEPT:
        values = [(p["workload"][axis], p["metrics"][metric]) for p in own if metric in p["metrics"]]
        if len(values) > 1:
            places = [(at, one[field]) for at, one in values]
            unit = values[0][1]["unit"].replace("/sec", " / s")
            shown.append(figure(name, figures.curve(name, unit, places, words(axis))))
    rows = [
        [f"{one['workload'][axis]:,}", *(_cell(one["metrics"].get(metric), field) for metric, field, _ in _SWEPT)]
        for one in sorted(own, key=lambda one: float(one["workload"][axis]))
    ]
    caption = f"By {words(axis)}"
    numbers = table(caption, [words(axis), *(name for _, _, name in _SWEPT)], rows)
    curves = tag("div", *shown, class_="side-by-side")
    return joined([tag("h3", caption), curves, details("The same as a table", numbers)])


def _cell(summary: Values | None, field: str) -> str | None:
    return None if summary is None else number(summary[field])


def decode(found: Values) -> Html | None:
    steps = found["points"][0]["decode_by_position"]
    if len(steps) < 2:
        return None
    text = "Each dot is the median of one decode step: what rises to the right is the cost of attending to more of the"
    return joined([_how(f"{text} cache."), figures.by_position(steps)])


def roofline(found: Values) -> Html | None:
    gaps, ceilings = found["points"][0]["roofline"], found["ceilings"]
    if not gaps or ceilings is None:
        return None
    gaps = {stage: gaps[stage] for stage in sorted(gaps, key=_order)}
    rows = [
        [
            words(stage),
            size(one["bytes"]),
            scaled(one["operations"]),
            milliseconds(one["floor_ms"]),
            milliseconds(one["measured_ms"]),
            number(one["times_the_floor"]),
            one["limited_by"],
        ]
        for stage, one in gaps.items()
    ]
    header = ("stage", "bytes", "operations", "floor", "measured", "times the floor", "limited by")
    text = (
        "The floor is the time that a stage's bytes and operations take at least on this machine: a dot near the roof "
        "is near its floor, and the line above it is the room left. Left of the bend memory limits, right of it "
        "arithmetic; far below, overhead."
    )
    if any(one["times_the_floor"] < 1 for one in gaps.values()):
        text += " A stage that works in the processor's cache passes a roof that was measured on memory."
    numbers = table("One run of each stage beside its floor", header, rows, (0, 6))
    return joined([_how(text), figures.roofline(gaps, ceilings), numbers])


def _order(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def layers(found: Values) -> Html | None:
    by_stage: dict[str, list[Values]] = {}
    for one in found["layers"]:
        by_stage.setdefault(one["stage"], []).append(one)
    if not by_stage:
        return None
    text = (
        "What each part of the model takes of one run of its stage, timed node by node: the median of all runs, and "
        "between which two times eight of ten lie. Shares are right, sums a little too large. "
    )
    stages = [_layers(stage, by_stage[stage]) for stage in sorted(by_stage, key=_order)]
    return joined([_how(text + WHAT_A_SPREAD_MEANS), *stages])


def _layers(stage: str, own: Sequence[Values]) -> Html:
    ordered = sorted(own, key=lambda one: -float(one["milliseconds"]))
    largest = ordered[0]["share"] or 1.0
    rows = [
        [
            words(one["layer"]),
            words(one["part"]),
            milliseconds(one["milliseconds"]),
            f"{number(one['low'])} … {milliseconds(one['high'])}",
            _share(one["share"], largest),
            _name(one),
        ]
        for one in ordered[:LISTED]
    ]
    left = ordered[LISTED:]
    rest = f"; {len(left)} more take {milliseconds(sum(one['milliseconds'] for one in left))} together" if left else ""
    header = ("layer", "part", "of a run", "p10 … p90", "share of the stage", "mostly")
    whole = sum(one["milliseconds"] for one in ordered)
    caption = f"The parts of {words(stage)} that take most, of {ordered[0]['runs']} runs{rest}"
    shown = table(caption, header, rows, (0, 1, 5))
    first = ", ".join(words(ordered[0][name]) for name in ("layer", "part"))
    near = sum(one["high"] >= ordered[0]["low"] for one in ordered[1:])
    most = f"{words(stage)}: {milliseconds(whole)} in {len(ordered)} parts, most in {first}"
    most += f", or in one of {near} whose ranges overlap with its own" if near else ""
    return tag("div", details(joined([tag("span", class_="swatch"), most]), shown), class_=figures.colour(stage))


def _name(layer: Values) -> object:
    """Of the operator; a long one, as an engine's layers have, without its middle, and whole for who points at it."""
    name = layer["operator"]
    return name if len(name) <= _LONG else tag("span", f"{name[: _LONG - 16]} … {name[-12:]}", title=name)


def _share(part: float, largest: float) -> Html:
    """The number, and a bar as long as it is of the largest."""
    inner = tag("span", class_="fill", style=f"width:{100 * part / largest:.1f}%")
    return joined(
        [tag("span", inner, class_="share", aria_hidden="true"), tag("span", share(part), class_="percent")], ""
    )


def comparison(found: Values) -> Html | None:
    shown = [joined(_compared(one)) for one in found["comparisons"] if one["ratios"]]
    if not shown:
        return None
    text = (
        "Both ran in turn; a ratio is how many times as long the other one takes for one run of a stage: right of 1 "
        "this bundle is faster, "
        "and a hollow dot says that the interval crosses 1, so that the difference may be chance."
    )
    return joined([_how(text), *shown])


def _compared(one: Values) -> Iterator[Html]:
    ratios = sorted(one["ratios"], key=lambda ratio: _order(ratio["stage"]))
    yield tag("h3", f"Against {one['other']}")
    yield tag("p", f"{one['pairs']} pairs; {what_it_means(one['same_tokens'], one['parted_at'])}.", class_="note")
    yield figures.ratios(ratios, one["other"])
    rows = [
        [
            words(ratio["stage"]),
            milliseconds(ratio["mine_ms"]),
            milliseconds(ratio["other_ms"]),
            f"{ratio['ratio']:.3f}",
            f"{ratio['low']:.3f} … {ratio['high']:.3f}",
        ]
        for ratio in ratios
    ]
    header = ("stage", "this bundle", "the other", "ratio", "95 % of it")
    yield table(f"Medians, and ratios to {one['other']}", header, rows)


_FIELDS = ("avg", "min", "p50", "p90", "p95", "p99", "max", "std")


def numbers(found: Values) -> Html | None:
    text = "Everything that was measured, for each point; a row sums up as many samples as its last column says."
    return joined([_how(text), *(_point(one) for one in found["points"])])


def _point(point: Values) -> Html:
    warm = ", ".join(milliseconds(one) for one in point["warmup_ms"])
    said = f"{point['iterations']} iterations" + (f" after {warm} of warm-up" if warm else " without warm-up")
    tables = [
        table(caption, ("name", "unit", *_FIELDS, "samples"), _summaries(point[kind]), (0, 1))
        for kind, caption in (("metrics", "Latencies and throughput"), ("stages", "Every run of each stage"))
        if point[kind]
    ]
    return details(point["label"], tag("p", said, class_="note"), *tables)


def _summaries(found: Mapping[str, Values]) -> Iterator[list[str | None]]:
    """A throughput is one number: all that was done over all the seconds."""
    for name, one in found.items():
        written = (number(one[field]) if field in one else None for field in _FIELDS)
        yield [words(name), one["unit"], *written, f"{one['count']:,}" if "count" in one else None]


def _how(text: str) -> Html:
    """The sentence that says how to read a section."""
    return tag("p", text, class_="how")
