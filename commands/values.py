"""What options and arguments may be: every number finite and bounded, every word and path UTF-8, lists never empty.

A value that is refused here is refused before a bundle is opened or anything is loaded.
"""

import math
import os
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision

FLOATS = click.Choice(["fp32", "fp16", "bf16"])
PRECISIONS = click.Choice([str(precision) for precision in Precision])
COMPONENTS = click.Choice([str(component) for component in Component])
BACKENDS = click.Choice(["auto", "tensorrt", "tensorrt-rtx", "cuda", "cuda-graph", "cpu"])
STAGES = click.Choice(["export", "verify", "build", "run", "cpu"])
DETAILS = click.Choice(["auto", "low", "high"])
BUILDERS = click.Choice(["tensorrt", "tensorrt-rtx"])

EVERY_TASK = "all"

Parameter = click.Parameter | None
Context = click.Context | None


class Number(click.FloatRange):
    """A finite number between two bounds; NaN lies within none, though it compares as if it did."""

    def convert(self, value: Any, param: Parameter, ctx: Context) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is no finite number", param, ctx)
        return found


class Threads(click.IntRange):
    """CPU threads. Beyond a few for each core they only wait for one another: hundreds look as if nothing went on."""

    name = "integer"

    def __init__(self) -> None:
        super().__init__(min=1)

    def convert(self, value: Any, param: Parameter, ctx: Context) -> Any:
        found, cores = super().convert(value, param, ctx), os.cpu_count() or 1
        most = max(64, 2 * cores)
        if found > most:
            self.fail(f"{value} is too many for {cores} cores; give at most {most}", param, ctx)
        return found


class Words(click.ParamType[str]):
    """Text as it was typed; bytes that are no UTF-8 would end as a traceback where they are printed or stored."""

    name = "text"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> str:
        text = str(value)
        if "\0" in text:
            self.fail(f"{text.replace(chr(0), '␀')} holds a NUL character", param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode(errors="backslashreplace")
            self.fail(f"{shown} is no UTF-8 text; convert it, or rename the file or folder", param, ctx)
        return text


class Location(Words):
    """A path, written with `~` where a shell has left that to the program."""

    name = "path"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> str:
        text = super().convert(value, param, ctx)
        if not text:
            self.fail("it is empty; name a file or folder", param, ctx)
        try:
            return str(Path(text).expanduser()) if text.startswith("~") else text
        except RuntimeError:
            self.fail(f"{text}: there is no such user; write ./{text} for a name that begins with ~", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        return click.Path().shell_complete(ctx, param, incomplete)


class PathValue(click.ParamType[Path]):
    """The path of a file or folder, which need not be there."""

    name = "path"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> Path:
        return Path(LOCATION.convert(value, param, ctx))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> Any:
        return LOCATION.shell_complete(ctx, param, incomplete)


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers between two bounds with commas between them, each once."""

    name = "n,n,…"

    def __init__(self, least: int, most: int) -> None:
        self._one = click.IntRange(least, most)

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[int, ...]:
        words = _listed(value)
        if not words:
            self.fail(f"{value!r} lists no number; write them with commas: 1,2,4", param, ctx)
        try:
            return tuple(dict.fromkeys(self._one.convert(word, param, ctx) for word in words))
        except click.BadParameter as error:
            self.fail(f"{error.message} Write whole numbers with commas: 1,2,4", param, ctx)


class Names(click.ParamType[tuple[str, ...]]):
    """Names with commas between them, each once."""

    name = "name,name,…"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, ...]:
        words = _listed(value)
        if not words:
            self.fail(f"{value!r} names nothing; write names with commas: sm89,sm120", param, ctx)
        return tuple(dict.fromkeys(TEXT.convert(word, param, ctx) for word in words))


class LeastScore(click.ParamType[tuple[str, float]]):
    """A score from 0 to 1, of all examples or of one task."""

    name = "[task=]score"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[str, float]:
        if not isinstance(value, str):
            return tuple(value)
        task, _, written = TEXT.convert(value, param, ctx).rpartition("=")
        try:
            return task or EVERY_TASK, SHARE.convert(written, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is no score; write one from 0 to 1, or one of a task: read=0.9", param, ctx)


def _listed(value: Any) -> list[Any]:
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else list(value)


TEXT, LOCATION, PATH, NAMES = Words(), Location(), PathValue(), Names()
THREADS, LEAST_SCORE = Threads(), LeastScore()
# Far beyond any model and machine there is, and small enough that nothing overflows or loops for ever.
POSITIONS = click.IntRange(64, 1 << 20)
PIXELS = click.IntRange(1, 1 << 30)
SEQUENCES, PICTURES = click.IntRange(1, 1024), click.IntRange(1, 1024)
NEW_TOKENS = click.IntRange(1, 1 << 20)
QUESTIONS = click.IntRange(1, 10_000)  # drawn in half a minute
ROUNDS, LINES = click.IntRange(1, 1_000_000), click.IntRange(0, 1_000_000)
SEED = click.IntRange(0, (1 << 63) - 1)
SHARE, SLOWDOWN = Number(0, 1), Number(0, 1000)
GIBIBYTES = Number(0, 1 << 20, min_open=True)
BATCHES, PICTURE_COUNTS, PROMPT_TOKENS = Numbers(1, 1024), Numbers(0, 1024), Numbers(1, 1 << 20)
