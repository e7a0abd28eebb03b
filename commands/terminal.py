"""What a person sees while something runs: progress on stderr, results on stdout."""

import math
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.progress import Bar


@contextmanager
def byte_bar(label: str, total_bytes: int) -> Iterator[Bar]:
    """A bar that counts bytes; on a pipe, its label only."""
    bar: Any = click.progressbar(length=total_bytes, label=f"{label:<22}", file=sys.stderr, width=30)
    with bar:
        yield bar


@contextmanager
def count_bar(label: str, total: int) -> Iterator[Bar]:
    """A bar that counts things; on a pipe, its label only."""
    bar: Any = click.progressbar(length=total, label=f"{label:<22}", file=sys.stderr, width=30, show_pos=True)
    with bar:
        yield bar


@contextmanager
def percent_bar(label: str) -> Iterator[Bar]:
    """A bar of a hundred steps; on a pipe, its label only."""
    bar: Any = click.progressbar(length=100, label=f"{label:<22}", file=sys.stderr, width=30, show_eta=False)
    with bar:
        yield bar


def standard_input() -> TextIO:
    """
    Raises:
        UsageError: a shell closed it (`<&-`).
    """
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("standard input is closed, and this reads from it; give it a file or a pipe")
    return sys.stdin


def figure(value: float) -> str:
    """A figure as it is: six digits; of what is nearly 1, such as a cosine, those that tell it from 1, nine at most."""
    short = f"{value:.6g}"
    if short != "1" or value >= 1:
        return short
    digits = min(2 - math.floor(math.log10(1 - value)), 9)
    nearly = f"{value:.{digits}f}"
    return nearly if nearly < "1" else f"0.{'9' * digits}"


def say(text: str) -> None:
    """A line of progress, on stderr: stdout belongs to the result."""
    click.echo(text, err=True)


def printable(text: str) -> str:
    """Text without control characters but line breaks and tabs: no answer and no file name may steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Columns aligned, numbers to the right where the header starts with a space."""
    cells: list[tuple[str, ...]] = [header, *rows]
    widths = [max(len(row[i].strip()) for row in cells) for i in range(len(header))]
    right = [name.startswith(" ") for name in header]
    lines = []
    for row in cells:
        padded = (c.strip().rjust(w) if r else c.strip().ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
