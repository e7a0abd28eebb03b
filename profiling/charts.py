"""Axes and marks of the report's charts, as SVG whose text keeps its size at every width.

Places across are shares of the width, written in percent; places down are pixels. The names of axes and their ticks lie
outside the picture, in the margin that the style sheet leaves.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise

from vlm_trt.profiling.markup import Html, put, scaled, tag

_INSET = 0.1  # beside the first and the last of a few values
HEIGHT = 220  # pixels between the axes
_LARGE = 10_000  # from here on ticks have a prefix
_NARROW, _CHARACTER = 250, 7  # pixels: the least width of a chart, and of a letter


@dataclass(frozen=True)
class Axis:
    """A range of values along one side."""

    name: str  # with its unit
    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False
    inset: float = 0.0  # share of the width that is left free at both ends

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one."""
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return self.inset + (1 - 2 * self.inset) * (at - low) / (high - low)

    def label(self, tick: float) -> str:
        if self.log:
            return scaled(tick) if tick >= _LARGE else f"{tick:,g}"
        step = min((b - a for a, b in pairwise(self.ticks)), default=1.0)
        return f"{tick:,.{max(0, -math.floor(math.log10(step * 1.0001)))}f}"


def axis(name: str, values: Iterable[float], *, zero: bool = False, exact: bool = False, count: int = 5) -> Axis:
    """A linear axis with round ticks.

    Args:
        name: with its unit.
        values: all that it has to hold.
        zero: begin there.
        exact: end at the largest value, instead of at a tick.
        count: of ticks, about.
    """
    values = list(values)
    low, high = 0.0 if zero else min(values), max(values)
    if high <= low:
        low, high = (0.0 if zero else low - 0.5), low + (1.0 if zero else 0.5)
    step = _round_step((high - low) / count)
    begin = low if exact else math.floor(low / step + 1e-9) * step
    end = high if exact else math.ceil(high / step - 1e-9) * step
    first = math.ceil(begin / step - 1e-9)
    ticks = tuple(at * step for at in range(first, math.floor(end / step + 1e-9) + 1))
    return Axis(name, begin, end, ticks)


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next((shape * power for shape in (1, 2, 5) if shape * power >= least * 0.999), 10 * power)


def log_axis(name: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis of whole decades, with a tick at each; every second or third one where there are many."""
    values = list(values)
    first, last = math.floor(math.log10(min(values)) + 1e-9), math.ceil(math.log10(max(values)) - 1e-9)
    last = max(last, first + 1)
    every = 1 + (last - first) // 6
    return Axis(name, 10.0**first, 10.0**last, tuple(10.0**at for at in range(first, last + 1, every)), log=True)


def own_ticks(name: str, values: Sequence[float]) -> Axis:
    """An axis with ticks at the values themselves; logarithmic where each is some times the one before."""
    ordered = sorted(set(values))
    log = ordered[0] > 0 and ordered[-1] >= 4 * ordered[0]
    low, high = ordered[0], ordered[-1]
    bare = Axis(name, low, high, (), log, _INSET)
    return replace(bare, ticks=tuple(spaced(bare, ordered, [f"{one:,.0f}" for one in ordered])))


def spaced(along: Axis, values: Sequence[float], texts: Sequence[str]) -> list[float]:
    """The values whose texts do not run into those already there, the first before all."""
    kept: list[float] = []
    end = -math.inf
    for value, text in zip(values, texts, strict=True):
        half, middle = len(text) * _CHARACTER / 2, along.place(value) * _NARROW
        if middle - half >= end:
            kept.append(value)
            end = middle + half + 6
    return kept


def picture(label: str, content: Iterable[str], height: float = HEIGHT, kind: str = "plot") -> Html:
    """An SVG as wide as its place; `kind` is the class whose margins the style sheet has."""
    return Html(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{kind}" role="img" aria-label="{escape(label)}" '
        f'width="100%" height="{height:g}">{"".join(content)}</svg>'
    )


def plot(label: str, across: Axis, up: Axis, marks: Iterable[str], height: float = HEIGHT) -> Html:
    """A chart of marks between two axes."""
    return picture(label, [*grid(across, up, height), *marks], height)


def grid(across: Axis, up: Axis, height: float) -> list[str]:
    """Lines and labels of the ticks, and the names of both axes."""
    parts = []
    for tick in up.ticks:
        y = height * (1 - up.place(tick))
        parts += [line(0, y, 1, y, "grid"), text(0, y + 4, up.label(tick), "tick end", dx=-8)]
    parts += below(across, height)
    return [*parts, text(0, -12, up.name, "axis start", dx=-44), text(1, height + 36, across.name, "axis end")]


def below(across: Axis, height: float) -> list[str]:
    """Ticks and labels of the axis under a chart, and its line."""
    parts = [line(0, height, 1, height, "base")]
    for tick in across.ticks:
        x = across.place(tick)
        parts += [line(x, height, x, height, "base", dy=5), text(x, height + 18, across.label(tick), "tick middle")]
    return parts


def text(x: float, y: float, content: str, kind: str, dx: float = 0) -> str:
    """Words at a share of the width, moved by some pixels; `kind` says which end of them is there."""
    moved = f' dx="{dx:g}"' if dx else ""
    return f'<text x="{percent(x)}" y="{y:.1f}"{moved} class="{kind}">{put(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str, dy: float = 0) -> str:
    return (
        f'<line x1="{percent(x1)}" y1="{y1:.1f}" x2="{percent(x2)}" y2="{y2 + dy:.1f}" class="{kind}"/>'
    )  # fmt: skip


def bar(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> str:
    """A rectangle, with words for who points at it."""
    place = f'x="{percent(x)}" y="{y:.1f}" width="{percent(max(0.0, width))}" height="{height:.1f}"'
    return f'<rect {place} class="{kind}"{_tipped("rect", tip)}'


def dot(x: float, y: float, radius: float, kind: str, tip: str = "") -> str:
    return f'<circle cx="{percent(x)}" cy="{y:.1f}" r="{radius:g}" class="{kind}"{_tipped("circle", tip)}'


def _tipped(name: str, tip: str) -> str:
    return f"><title>{put(tip)}</title></{name}>" if tip else "/>"


def path(places: Iterable[tuple[float, float]], kind: str) -> str:
    """A line through places, each a share of the width and of the height from below."""
    points = " ".join(f"{100 * x:.2f},{100 * (1 - y):.2f}" for x, y in places)
    inner = f'<polyline points="{points}" class="{kind}" vector-effect="non-scaling-stroke"/>'
    return (
        '<svg viewBox="0 0 100 100" width="100%" height="100%" preserveAspectRatio="none" overflow="visible">'
        f"{inner}</svg>"
    )


def percent(part: float) -> str:
    return f"{100 * part:.3f}".rstrip("0").rstrip(".") + "%"


def figure(caption: object, *content: Html) -> Html:
    return tag("figure", tag("figcaption", caption), *content)


def legend(kinds: Sequence[tuple[str, str]]) -> Html:
    """Class and name of each colour."""
    items = [tag("li", tag("span", class_=f"swatch {kind}"), name) for kind, name in kinds]
    return tag("ul", *items, class_="legend")
