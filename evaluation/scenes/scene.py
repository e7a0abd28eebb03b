"""Synthetic scenes as data: coloured shapes that do not overlap, and maybe a printed number or word.

The held-out split shares nothing with what the demo model was trained on: every scene of it has a combination of
colour, shape and size, and every printed number is one, that no training scene has.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlm_trt.evaluation.scenes.typefaces import NAMES

Split = Literal["train", "held_out"]
Box = tuple[float, float, float, float]  # left, top, right, bottom as shares of the picture's width and height

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 215, 40),
    "purple": (145, 60, 185),
    "orange": (245, 130, 30),
    "black": (20, 20, 20),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
SIZES = ("small", "large")
WORDS = (
    "STOP", "EXIT", "OPEN", "CAFE", "TAXI", "SALE", "BUS", "ZOO", "BANK", "FIRE", "HOTEL", "PARK", "SHOP", "FREE",
    "HELP", "NEWS", "MILK", "TEA", "RAIL", "GOLD", "LEFT", "NORTH", "EAST", "WEST",
)  # fmt: skip
CANVASES = (224, 256, 320)  # pixels a side
MAX_SHAPES = 5

# Everything stands on a raster of 32×32: a small model sees every place often enough to learn it.
_RASTER = 32
_SIDES = {"small": 5, "large": 8}  # of a shape, in raster units
_LETTER_SIDE = 4  # of the place of a printed letter
_GAP = 0.02  # between things, as a share of the picture
_TRIES = 30


@dataclass(frozen=True)
class Thing:
    """One shape."""

    colour: str
    shape: str
    size: str
    box: Box

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Writing:
    """A printed number or word, its letters evenly spaced."""

    text: str
    font: str
    box: Box
    light: bool  # white letters rather than black ones

    def places(self) -> list[Box]:
        """Where each letter stands."""
        left, top, right, bottom = self.box
        width = (right - left) / len(self.text)
        return [(left + i * width, top, left + (i + 1) * width, bottom) for i in range(len(self.text))]

    @property
    def is_number(self) -> bool:
        return self.text.isdigit()


@dataclass(frozen=True)
class Scene:
    side: int  # pixels
    background: tuple[int, int, int]
    clutter_seed: int | None  # None: a plain background
    things: tuple[Thing, ...]  # from left to right
    writing: Writing | None


def held_out_combination(colour: str, shape: str, size: str) -> bool:
    """Whether no training scene has this combination: 12 of the 96, two of every shape."""
    return (list(COLOURS).index(colour) + SHAPES.index(shape) + 4 * SIZES.index(size)) % 8 == 0


def held_out_number(number: int) -> bool:
    """Whether no training scene has this number: about one in ten."""
    return number * 7919 % 1009 % 10 == 3


def sample_scene(random: np.random.Generator, split: Split) -> Scene:
    """A scene of the split: one to five shapes, in half of the cases a number or a word beside them."""
    while not (scene := _try_scene(random, split)).things:
        pass  # the text left no room for the first shape
    return scene


def _try_scene(random: np.random.Generator, split: Split) -> Scene:
    side = CANVASES[int(random.integers(len(CANVASES)))]
    grey = int(random.integers(95, 200))
    red, green, blue = (int(np.clip(grey + random.integers(-22, 23), 0, 255)) for _ in range(3))
    taken: list[Box] = []
    writing = _place_writing(random, split, grey, taken) if random.random() < 0.5 else None
    count = int(random.integers(1, MAX_SHAPES + 1))
    things: list[Thing] = []
    repeat = random.random() < 0.5  # scenes in which counting one kind gives more than one
    for i in range(count):
        held_out = split == "held_out" and i == 0
        likeness = things[int(random.integers(len(things)))] if repeat and things else None
        thing = _place_thing(random, split, held_out, taken, likeness)
        if thing is not None:
            things.append(thing)
    clutter = int(random.integers(1 << 31)) if random.random() < 0.5 else None
    ordered = tuple(sorted(things, key=lambda thing: thing.centre))
    return Scene(side, (red, green, blue), clutter, ordered, writing)


def _place_thing(
    random: np.random.Generator,
    split: Split,
    held_out: bool,
    taken: list[Box],
    likeness: Thing | None,
) -> Thing | None:
    """A shape in a free place, like another one in colour or shape if asked; None where none is found."""
    while True:
        colour = list(COLOURS)[int(random.integers(len(COLOURS)))]
        shape = SHAPES[int(random.integers(len(SHAPES)))]
        size = SIZES[int(random.integers(2))]
        if likeness is not None:
            if random.random() < 0.5:
                shape = likeness.shape
            else:
                colour = likeness.colour
        if held_out_combination(colour, shape, size) == held_out or (split == "held_out" and not held_out):
            break
    box = _free_place(random, _SIDES[size], _SIDES[size], taken)
    return None if box is None else Thing(colour, shape, size, box)


def _place_writing(random: np.random.Generator, split: Split, grey: int, taken: list[Box]) -> Writing | None:
    if random.random() < 0.6:
        digits = int(random.integers(1, 4))
        while True:
            number = int(random.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
            if held_out_number(number) == (split == "held_out"):
                break
        text = str(number)
    else:
        text = WORDS[int(random.integers(len(WORDS)))]
    font = NAMES[int(random.integers(len(NAMES)))]
    box = _free_place(random, len(text) * _LETTER_SIDE, _LETTER_SIDE, taken)
    return None if box is None else Writing(text, font, box, light=grey < 140)


def _free_place(random: np.random.Generator, width: int, height: int, taken: list[Box]) -> Box | None:
    """A box of that size in raster units, apart from all others; it counts as taken from then on."""
    for _ in range(_TRIES):
        left, top = (int(random.integers(1, _RASTER - extent)) for extent in (width, height))
        box = (left / _RASTER, top / _RASTER, (left + width) / _RASTER, (top + height) / _RASTER)
        if all(
            box[2] + _GAP < other[0] or other[2] + _GAP < box[0] or box[3] + _GAP < other[1] or other[3] + _GAP < box[1]
            for other in taken
        ):
            taken.append(box)
            return box
    return None
