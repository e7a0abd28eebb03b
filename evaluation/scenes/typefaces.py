"""The typefaces of printed numbers and words: digits and capitals of four DejaVu faces, shipped with the project."""

import io
from functools import lru_cache
from importlib.resources import files

from PIL import Image, ImageDraw, ImageFont

NAMES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")


@lru_cache(maxsize=256)
def typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    """The face at a size in pixels to the em."""
    data = files("vlm_trt.evaluation.scenes").joinpath(f"fonts/{name}.ttf").read_bytes()
    return ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def letter(name: str, character: str, width: int, height: int) -> Image.Image:
    """A digit or capital as a mask of its ink, as high as asked; squeezed where it would be wider."""
    face = typeface(name, 2 * height)
    canvas = Image.new("L", (6 * height, 6 * height))
    ImageDraw.Draw(canvas).text((height, height), character, fill=255, font=face)
    ink = canvas.crop(canvas.getbbox())
    fitting = min(width, round(ink.width * height / ink.height))
    return ink.resize((max(1, fitting), height), Image.Resampling.BICUBIC)
