"""The error of every layer as a picture: one bar each, in graph order, coloured by what became of it."""

from collections.abc import Sequence
from html import escape

from vlm_trt.calibration.recipe import Kind
from vlm_trt.calibration.rewrite import LayerError

_ROW, _LABEL, _BAR, _RIGHT, _TOP = 15, 300, 420, 70, 56  # pixels
_COLOURS = {Kind.INT8: "#4269d0", Kind.INT8_WEIGHT: "#3ca951", Kind.INT4: "#ff725c", Kind.FP8: "#a463f2"}
# Readable in light and dark: the ground follows the viewer, the letters follow it too.
_STYLE = (
    "svg{background:#fff}text{font:11px sans-serif;fill:#222}"
    "@media(prefers-color-scheme:dark){svg{background:#1c1c1c}text{fill:#ddd}}"
)


def error_picture(title: str, layers: Sequence[LayerError]) -> str:
    """An SVG of the errors, the longest bar the largest.

    Args:
        title: above the bars.
        layers: in graph order.
    """
    width, height = _LABEL + _BAR + _RIGHT, _TOP + _ROW * len(layers) + 12
    largest = max((one.error for one in layers), default=0.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<text x="12" y="20" style="font-size:14px;font-weight:bold">{escape(title)}</text>',
        *_legend(layers),
    ]
    for row, one in enumerate(layers):
        y, length = _TOP + _ROW * row, max(1.0, one.error / largest * _BAR)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 11}" text-anchor="end">{escape(one.layer)}</text>',
            f'<rect x="{_LABEL}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 4}" fill="{_COLOURS[one.kind]}"/>',
            f'<text x="{_LABEL + length + 5:.1f}" y="{y + 11}">{one.error:.2%}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _legend(layers: Sequence[LayerError]) -> list[str]:
    """The kinds that occur."""
    parts, x = [], 12
    for kind in dict.fromkeys(one.kind for one in layers):
        parts += [
            f'<rect x="{x}" y="32" width="11" height="11" fill="{_COLOURS[kind]}"/>',
            f'<text x="{x + 16}" y="42">{kind}</text>',
        ]
        x += 110
    return parts
