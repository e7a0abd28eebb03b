"""The charts of a report, each from the JSON values of a profile."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_trt.profiling.charts import (
    HEIGHT,
    Axis,
    axis,
    bar,
    below,
    dot,
    figure,
    legend,
    line,
    log_axis,
    own_ticks,
    path,
    picture,
    plot,
    spaced,
    text,
)
from vlm_trt.profiling.markup import Html, joined, milliseconds, number, scaled, share, words
from vlm_trt.profiling.metrics import STAGES
from vlm_trt.runtime.timing import PARTS

_ROW, _THICK = 44, 16  # pixels: of a row with its words above, and of its bar
_FEW = 40  # samples up to which each is a dot of its own
_BINS = 36
_DOT = 4.5
_TALL = 320  # pixels
_DASHES = ("dash solid", "dash dashed", "dash dotted")
_ROOM = 1.12  # above the highest point, for its value

Values = Mapping[str, Any]


def colour(stage: str) -> str:
    """The style sheet's class of a stage."""
    return f"stage {stage if stage in (*STAGES, *PARTS) else 'rest'}"


def timeline(spans: Sequence[Values]) -> Html:
    """A row of bars for each request, and one for the steps that all requests share."""
    rows = _rows(spans)
    across = axis("ms since the requests were submitted", [end(spans)], zero=True, exact=True)
    height = _ROW * len(rows) + 4
    parts = [one for tick in across.ticks for one in _rule(across.place(tick), len(rows), "grid")]
    for at, (name, own) in enumerate(rows.items()):
        parts.append(text(0, _ROW * at + 16, name, "name start halo"))
        parts += _bars(own, across, _ROW * at + 23)
    parts += [*below(across, height), text(1, height + 36, across.name, "axis end")]
    label = f"Timeline of {len(spans)} stages in {milliseconds(end(spans))}"
    return picture(label, parts, height, "rows axis-below")


def _rows(spans: Sequence[Values]) -> dict[str, list[Values]]:
    """With several requests, decode steps and copies in them are in the last row: they begin after all prefills."""
    rows: dict[str, list[Values]] = {f"request {at + 1}": [] for at in sorted({one["request"] for one in spans})}
    if len(rows) == 1:
        return {name: list(spans) for name in rows}
    decoding = min((one["start_ms"] for one in spans if one["stage"] == "decode_step"), default=math.inf)
    together: list[Values] = []
    for one in spans:
        shared = one["stage"] == "decode_step" or (one["stage"] in PARTS and one["start_ms"] >= decoding)
        (together if shared else rows[f"request {one['request'] + 1}"]).append(one)
    return rows | ({"all requests together": together} if together else {})


def _bars(spans: Sequence[Values], across: Axis, y: float) -> Iterator[str]:
    """Every other run of a stage is a little lighter, to tell them apart; parts of a stage are thinner and over it."""
    seen: dict[str, int] = {}
    for one in sorted(spans, key=lambda span: span["stage"] in PARTS):
        stage, begin = one["stage"], across.place(one["start_ms"])
        seen[stage] = seen.get(stage, 0) + 1
        inner = stage in PARTS
        kind = colour(stage) + (" lighter" if seen[stage] % 2 == 0 else "")
        tip = f"{words(stage)}: {milliseconds(one['ms'])}, from {milliseconds(one['start_ms'])}"
        height = _THICK / 2 if inner else _THICK
        yield bar(begin, y + (_THICK - height), across.place(one["ms"]), height, kind, tip)


def end(spans: Sequence[Values]) -> float:
    """Milliseconds until the last stage was over."""
    return float(max(one["start_ms"] + one["ms"] for one in spans))


def waterfall(spans: Sequence[Values]) -> Html:
    """The total of each stage, each bar beginning where the one before ends; what no stage took comes last."""
    whole, spent = end(spans), totals(spans)
    rows = {stage: spent[stage] for stage in (*STAGES, *spent) if stage in spent and stage not in PARTS}
    rest = whole - sum(rows.values())
    rows |= {"between_the_stages": rest} if rest > 0 else {}
    runs = Counter(one["stage"] for one in spans)
    parts, begin = [], 0.0
    for at, (stage, taken) in enumerate(rows.items()):
        said = f"{milliseconds(taken)} · {share(taken / whole)}"
        each = f", {runs[stage]} × {milliseconds(taken / runs[stage])}" if runs[stage] > 1 else ""
        parts += _row(at, words(stage) + each, said)
        parts.append(bar(0, _ROW * at + 23, 1, _THICK, "track"))
        parts.append(bar(begin / whole, _ROW * at + 23, taken / whole, _THICK, colour(stage) + " edged", said))
        begin += taken
    label = f"Stages of {milliseconds(whole)}: "
    label += ", ".join(f"{words(stage)} {share(taken / whole)}" for stage, taken in rows.items())
    return picture(label, parts, _ROW * len(rows), "rows")


def totals(spans: Sequence[Values]) -> dict[str, float]:
    """Milliseconds of all runs of each stage."""
    found: dict[str, float] = {}
    for one in spans:
        found[one["stage"]] = found.get(one["stage"], 0.0) + one["ms"]
    return found


def _row(at: int, name: str, value: str) -> list[str]:
    y = _ROW * at + 16
    return [text(0, y, name, "name start halo"), text(1, y, value, "value end halo")]


def _rule(x: float, rows: int, kind: str) -> list[str]:
    """A line down through all rows, but for their words."""
    return [line(x, _ROW * at + 21, x, _ROW * at + 41, kind) for at in range(rows)]


def distribution(name: str, samples: Sequence[float]) -> Html:
    """A dot for each sample, or a bar for each range of them where they are many; p50, p90 and p99 as lines.

    What lies far beyond p99 is told instead of drawn, unless p99 itself is far from p50: then the axis is logarithmic.
    """
    marks = dict(zip(("p50", "p90", "p99"), map(float, np.percentile(samples, [50, 90, 99])), strict=True))
    many, wide = len(samples) > _FEW, marks["p99"] > 10 * marks["p50"] and min(samples) > 0
    shown = [one for one in samples if wide or not many or one <= 2 * marks["p99"]]
    across = (log_axis if wide else axis)("ms", [*shown, *marks.values()])
    up, drawn = _counted(shown, across) if many else _dotted(shown, across)
    places = [across.place(value) for value in marks.values()]
    drawn += [line(x, 0, x, HEIGHT, f"mark {dash}") for x, dash in zip(places, _DASHES, strict=True)]
    caption = f"{name}, {len(samples)} samples"
    if beyond := len(samples) - len(shown):
        caption += f", {beyond} of them beyond this axis, up to {milliseconds(max(samples))}"
    said = [f"{mark} {milliseconds(value)}" for mark, value in marks.items()]
    names = [*zip(_DASHES, said, strict=True)]
    return figure(caption, legend(names), plot(f"{caption}: {', '.join(said)}", across, up, drawn))


def _counted(samples: Sequence[float], across: Axis) -> tuple[Axis, list[str]]:
    """Ranges of the same width on the axis."""
    counts, _ = np.histogram([across.place(one) for one in samples], bins=_BINS, range=(0, 1))
    up = axis("samples", [int(counts.max())], zero=True, count=4)
    bars = []
    for at, count in enumerate(map(int, counts)):
        height = HEIGHT * up.place(count)
        if count:
            bars.append(
                bar(at / _BINS + 0.001, HEIGHT - height, 1 / _BINS - 0.002, height, "sample", f"{count} samples")
            )
    return up, bars


def _dotted(samples: Sequence[float], across: Axis) -> tuple[Axis, list[str]]:
    """In the order they were measured, the first on top."""
    up = axis("sample", [1, len(samples)], zero=True, count=4)
    return up, [
        dot(across.place(one), HEIGHT * (1 - up.place(at + 1)), _DOT, "sample", f"{at + 1}: {milliseconds(one)}")
        for at, one in enumerate(samples)
    ]


def curve(name: str, unit: str, places: Sequence[tuple[float, float]], of: str, stage: str = "") -> Html:
    """A line through points with their values written at them, where there is room.

    Args:
        name, unit: of what is measured.
        places: what was varied, and what was measured there.
        of: what was varied.
        stage: gives the colour.
    """
    places = sorted(places)
    across = own_ticks(of, [x for x, _ in places])
    up = axis(unit, [_ROOM * y for _, y in places], zero=True, count=4)
    kind = colour(stage) if stage else "plain"
    spots = [(across.place(x), up.place(y)) for x, y in places]
    written = spaced(across, [x for x, _ in places], [number(y) for _, y in places])
    parts = [path(spots, f"curve {kind}")]
    for at, ((x, y), (left, height)) in enumerate(zip(places, spots, strict=True)):
        down = HEIGHT * (1 - height)
        parts.append(dot(left, down, _DOT, kind, f"{of} {x:,.0f}: {number(y)} {unit}"))
        if x in written:
            rises = 1 < at < len(places) - 1 and places[at + 1][1] > y  # beside the line, and not on it
            where, dx = ("end", 6) if rises else ("middle", 0)
            parts.append(text(left, down - 10, number(y), f"value {where} halo", dx=dx))
    label = f"{name} by {of}: " + ", ".join(f"{x:,.0f}: {number(y)} {unit}" for x, y in places)
    return plot(label, across, up, parts)


def by_position(steps: Sequence[tuple[int, float]]) -> Html:
    """A dot for each decode step."""
    across = axis("positions in the cache before the step", [one for one, _ in steps], exact=True)
    up = axis("ms", [one for _, one in steps], zero=True, count=4)
    spots = [(across.place(at), up.place(ms)) for at, ms in steps]
    parts = [path(spots, f"curve thin {colour('decode_step')}")]
    for (x, y), (at, ms) in zip(spots, steps, strict=True):
        tip = f"{at} positions: {milliseconds(ms)}"
        parts.append(dot(x, HEIGHT * (1 - y), 3, colour("decode_step"), tip))
    first, last = steps[0], steps[-1]
    label = f"Decode step: {milliseconds(first[1])} at {first[0]} positions, {milliseconds(last[1])} at {last[0]}"
    return plot(label, across, up, parts)


def roofline(gaps: Mapping[str, Values], ceilings: Values) -> Html:
    """A dot for each stage under the roof of memory and arithmetic, with a line up to where it could be."""
    moved, integer = ceilings["bytes_per_second"], ceilings["integer_operations_per_second"]
    peaks = [ceilings["operations_per_second"]] + ([integer] if integer else [])
    spots = {
        stage: (one["operations"] / one["bytes"], 1000 * one["operations"] / one["measured_ms"])
        for stage, one in gaps.items()
    }
    ridges = [peak / moved for peak in peaks]
    reached = [2.0**side * x for x, _ in spots.values() for side in (-1, 1)]
    across = log_axis("operations per byte", [*reached, *ridges, 2 * max(ridges)])
    up = log_axis("operations / s", [*(y for _, y in spots.values()), moved * across.low, *peaks])
    parts = [_roof(across, up, moved, peak, dash) for peak, dash in zip(peaks, _DASHES, strict=False)]
    parts += _stages_under(spots, gaps, across, up, _TALL)
    names = [f"memory {scaled(moved, 'B')}/s, operations {scaled(peaks[0])}/s"]
    names += [f"8-bit operations {scaled(integer)}/s"] if integer else []
    label = "Roofline: " + "; ".join(
        f"{words(stage)} {scaled(y)} operations per second at {number(x)} per byte" for stage, (x, y) in spots.items()
    )
    names_of_dots = [(colour(stage), words(stage)) for stage in gaps]
    return joined([legend([*names_of_dots, *zip(_DASHES, names, strict=False)]), plot(label, across, up, parts, _TALL)])


def _roof(across: Axis, up: Axis, moved: float, peak: float, dash: str) -> str:
    ends = [across.low, peak / moved, across.high]
    return path([(across.place(x), up.place(min(peak, moved * x))) for x in ends], f"curve roof {dash}")


def _stages_under(
    spots: Mapping[str, tuple[float, float]], gaps: Mapping[str, Values], across: Axis, up: Axis, height: float
) -> Iterator[str]:
    """The lines first, so that no dot is crossed; what a dot is its colour says, since words would lie on the roofs."""
    for stage, (x, y) in spots.items():
        left, down = across.place(x), height * (1 - up.place(y))
        bound = height * (1 - up.place(y * gaps[stage]["times_the_floor"]))
        yield line(left, bound, left, down, f"reach {colour(stage)}")
    for stage, (x, y) in spots.items():
        gap = gaps[stage]
        tip = f"{words(stage)}: {number(gap['times_the_floor'])} times its floor, limited by {gap['limited_by']}"
        yield dot(across.place(x), height * (1 - up.place(y)), 6, colour(stage), tip)


def ratios(found: Sequence[Values], other: str) -> Html:
    """The ratio of each stage with its interval, around 1."""
    ends = [one[end] for one in found for end in ("low", "high")] + [1.0]
    wide = max(ends) / max(min(ends), 1e-9) > 10
    across = log_axis("times as long", ends) if wide else axis("times as long", ends)
    height = _ROW * len(found) + 4
    parts = [one for tick in across.ticks for one in _rule(across.place(tick), len(found), "grid")]
    parts += _rule(across.place(1), len(found), "one")
    for at, one in enumerate(found):
        y, kind = _ROW * at + 31, colour(one["stage"])
        low, middle, high = (across.place(one[name]) for name in ("low", "ratio", "high"))
        sure = "" if one["low"] > 1 or one["high"] < 1 else " open"
        said = f"{one['ratio']:.2f} ({one['low']:.2f} … {one['high']:.2f})"
        parts += _row(at, words(one["stage"]), said)
        parts += [line(low, y, high, y, f"interval {kind}"), line(low, y - 5, low, y + 5, f"interval {kind}")]
        parts += [line(high, y - 5, high, y + 5, f"interval {kind}"), dot(middle, y, 5, kind + sure, said)]
    parts += [*below(across, height), text(1, height + 36, across.name, "axis end")]
    label = f"Ratios to {other}: " + ", ".join(f"{words(one['stage'])} {one['ratio']:.2f}" for one in found)
    return picture(label, parts, height, "rows axis-below")


def legend_of(spans: Sequence[Values]) -> list[tuple[str, str]]:
    """Class and name of each stage that occurs, in the order of the stages."""
    seen = dict.fromkeys(one["stage"] for one in spans)
    known = [one for one in (*STAGES, *PARTS) if one in seen]
    return [(colour(stage), words(stage)) for stage in (*known, *(one for one in seen if one not in known))]
