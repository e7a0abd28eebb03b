"""A scene drawn as a picture."""

import io
import math

import numpy as np
from PIL import Image, ImageDraw

from vlm_trt.evaluation.scenes.scene import COLOURS, Scene, Thing, Writing
from vlm_trt.evaluation.scenes.typefaces import letter

Point = tuple[float, float]


def draw_scene(scene: Scene, scale: float = 1.0) -> Image.Image:
    """The picture, `scale` times as large as the scene says."""
    side = round(scene.side * scale)
    picture = Image.new("RGB", (side, side), scene.background)
    draw = ImageDraw.Draw(picture)
    if scene.clutter_seed is not None:
        _clutter(draw, scene, side)
    for thing in scene.things:
        _draw_thing(draw, thing, side)
    if scene.writing is not None:
        _draw_writing(draw, scene.writing, side)
    return picture


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _clutter(draw: ImageDraw.ImageDraw, scene: Scene, side: int) -> None:
    """Thin lines and pale blots, near the background in colour."""
    random = np.random.default_rng(scene.clutter_seed)
    places = random.uniform(0, 1, (14, 4)) * side
    shades = random.integers(-26, 27, (14, 3))
    line_width = max(1, round(side / 128))
    for i, (place, shade) in enumerate(zip(places.tolist(), shades.tolist(), strict=True)):
        colour = tuple(min(max(c + s, 0), 255) for c, s in zip(scene.background, shade, strict=True))
        x1, y1, x2, y2 = place
        if i % 2:
            draw.line((x1, y1, x2, y2), fill=colour, width=line_width)
        else:
            reach = side * 0.15
            draw.ellipse((x1, y1, x1 + reach * x2 / side, y1 + reach * y2 / side), fill=colour)


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, side: int) -> None:
    left, top, right, bottom = (edge * side for edge in thing.box)
    colour = COLOURS[thing.colour]
    if thing.shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=colour)
    elif thing.shape == "square":
        draw.rectangle((left, top, right, bottom), fill=colour)
    else:
        outline = _OUTLINES[thing.shape]
        draw.polygon([(left + x * (right - left), top + y * (bottom - top)) for x, y in outline], fill=colour)


def _draw_writing(draw: ImageDraw.ImageDraw, writing: Writing, side: int) -> None:
    """Every letter in the middle of its place, as high as the box."""
    fill = (255, 255, 255) if writing.light else (0, 0, 0)
    for character, (left, top, right, bottom) in zip(writing.text, writing.places(), strict=True):
        width, height = (right - left) * side, (bottom - top) * side
        mask = letter(writing.font, character, round(0.92 * width), round(height))
        draw.bitmap((round(left * side + (width - mask.width) / 2), round(top * side)), mask, fill=fill)


def _star() -> list[Point]:
    """Five points that touch the sides of the unit square."""
    radii = (1.0, 0.42) * 5
    raw = [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)]
    xs, ys = [x for x, _ in raw], [y for _, y in raw]
    return [((x - min(xs)) / (max(xs) - min(xs)), (y - min(ys)) / (max(ys) - min(ys))) for x, y in raw]


_A, _B = 0.34, 0.66  # edges of a cross's arms
_OUTLINES: dict[str, list[Point]] = {
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
    "cross": [(_A, 0), (_B, 0), (_B, _A), (1, _A), (1, _B), (_B, _B), (_B, 1), (_A, 1), (_A, _B), (0, _B), (0, _A),
              (_A, _A)],
}  # fmt: skip
