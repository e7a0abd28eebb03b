"""Pieces of HTML and the way numbers are written in a report. Whatever is not ours is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape

# Between a number and its unit: a narrow space where no line breaks.
_THIN = "\u202f"
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Html(str):
    """Text that is HTML already; every other string is escaped where it is put in."""

    __slots__ = ()


def put(content: object) -> str:
    """The content as HTML; nothing for None."""
    if isinstance(content, Html):
        return content
    return "" if content is None else escape(str(content))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        content: escaped, unless it is HTML.
        attributes: `_` stands for `-`, a `_` at the end is dropped, and those that are None are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>{''.join(map(put, content))}</{name}>")


def joined(parts: Iterable[str], between: str = "\n") -> Html:
    return Html(between.join(put(part) for part in parts))


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[object]], texts: Sequence[int] = (0,)) -> Html:
    """A table that scrolls by itself where it is too wide.

    Args:
        caption: above it.
        header: of each column.
        rows: the first cell of each names the row.
        texts: columns of words; the others are numbers.
    """
    kinds = ["text" if at in texts else "number" for at in range(len(header))]
    head = [tag("th", name, scope="col", class_=kind) for name, kind in zip(header, kinds, strict=True)]
    body = []
    for first, *others in rows:
        cells = [tag("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True)]
        body.append(tag("tr", tag("th", first, scope="row", class_="text"), *cells))
    inner = tag(
        "table", tag("caption", tag("span", caption)), tag("thead", tag("tr", *head)), tag("tbody", joined(body, "\n"))
    )  # fmt: skip
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def details(summary: object, *content: object, open_: bool = False) -> Html:
    """What unfolds when its summary is chosen."""
    return tag("details", tag("summary", summary), *content, open="" if open_ else None)


def number(value: float) -> str:
    """With the digits that matter, and commas between thousands."""
    size = abs(value)
    decimals = 0 if size >= 1000 or value == 0 else 1 if size >= 100 else 2 if size >= 1 else 3 if size >= 0.01 else 5
    return f"{value:,.{decimals}f}"


def milliseconds(value: float) -> str:
    return f"{number(value)}{_THIN}ms"


def scaled(value: float, unit: str = "") -> str:
    """With a decimal prefix: 12.3 GB/s."""
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{_short(value / size)}{_THIN}{prefix}{unit}"
    return f"{_short(value)}{_THIN}{unit}" if unit else _short(value)


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def size(count: float) -> str:
    """Bytes in powers of 1024."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g}{_THIN}{unit}"
        count /= 1024
    return f"{count:.2f}{_THIN}GiB"


def share(part: float) -> str:
    return f"{part:.1%}".replace("%", f"{_THIN}%")


def words(name: str) -> str:
    """A name of a stage or metric as people write it."""
    return name.replace("_", " ")
