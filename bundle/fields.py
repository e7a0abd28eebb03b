"""Values from files → typed values in their range, each mistake a sentence that names file, field and what is allowed.

The ranges stand with the fields they are of: as `Annotated[int, Within(…)]` in the dataclasses that files hold, and by
name where a foreign file is read (`Fields`).
"""

import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vlm_trt.bundle.errors import VlmTrtError
from vlm_trt.bundle.reading import shown

T = TypeVar("T")


@dataclass(frozen=True)
class Within:
    """The range of a number, its ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high  # NaN lies in none

    def __str__(self) -> str:
        return f"from {_figure(self.low)} to {_figure(self.high)}"


class _Anything(Within):
    """NaN and infinity too: what a failed check measured."""

    def __contains__(self, value: float) -> bool:
        return True


ANYTHING = _Anything(-math.inf, math.inf)
_COUNT = Within(0, (1 << 63) - 1)  # whole numbers that say no range of their own
_FINITE = Within(-1.7976931348623157e308, 1.7976931348623157e308)
SHARE = Within(0, 1)


@dataclass(frozen=True)
class Origin:
    """Where values come from, for sentences."""

    where: str  # the file
    error: type[VlmTrtError]
    remedy: str

    def wrong(self, at: str, what: str) -> VlmTrtError:
        return self.error(f"{self.where}: {at or 'the top level'} {what}; {self.remedy}")

    def build(self, kind: type[T], raw: Any, at: str = "") -> T:
        """A dataclass from an object: every field there, of its type and in its range, and none unknown."""
        if not isinstance(raw, dict):
            raise self.wrong(at, "is not an object")
        assert is_dataclass(kind)
        hints, prefix = _hints(kind), f"{at}." if at else ""
        if unknown := sorted(set(raw) - set(hints)):
            raise self.wrong(f"{prefix}{unknown[0]}", "is unknown to this version")
        if missing := sorted(set(hints) - set(raw)):
            raise self.wrong(f"{prefix}{missing[0]}", "is missing")
        return kind(**{name: self.value(hint, raw[name], f"{prefix}{name}") for name, hint in hints.items()})

    def value(self, kind: Any, raw: Any, at: str) -> Any:
        """One value of that type, which may be annotated with its range."""
        within, origin = None, get_origin(kind)
        if origin is Annotated:
            kind, within = get_args(kind)
            origin = get_origin(kind)
        if origin in (Union, types.UnionType):
            kinds = [one for one in get_args(kind) if one is not type(None)]
            if raw is None and len(kinds) < len(get_args(kind)):
                return None
            return self.value(kinds[0], raw, at) if len(kinds) == 1 else self._tagged(kinds, raw, at)
        if origin is Literal:
            if raw not in get_args(kind):
                raise self.wrong(at, f"is {shown(raw)}, not {get_args(kind)[0]}")
            return raw
        if origin is tuple:
            return self._tuple(kind, raw, at)
        if origin is dict:
            if not isinstance(raw, dict):
                raise self.wrong(at, "is not an object")
            return {key: self.value(get_args(kind)[1], item, f"{at}.{key}") for key, item in raw.items()}
        if isinstance(kind, type) and is_dataclass(kind):
            return self.build(kind, raw, at)
        if issubclass(kind, StrEnum):
            if raw not in list(kind):
                raise self.wrong(at, f"is {shown(raw)}, not one of {', '.join(kind)}")
            return kind(raw)
        return self._plain(kind, within, raw, at)

    def _tagged(self, kinds: list[Any], raw: Any, at: str) -> Any:
        """One of several dataclasses, told apart by the one text that their field `type` may be."""
        if not isinstance(raw, dict):
            raise self.wrong(at, "is not an object")
        by_type = {get_args(_hints(kind)["type"])[0]: kind for kind in kinds}
        tag = raw.get("type")
        if not isinstance(tag, str) or tag not in by_type:
            raise self.wrong(f"{at}.type", f"is {shown(tag)}, not one of {', '.join(by_type)}")
        return self.build(by_type[tag], raw, at)

    def _tuple(self, kind: Any, raw: Any, at: str) -> tuple[Any, ...]:
        """A list of any length, or of as many values as the type says."""
        if not isinstance(raw, list):
            raise self.wrong(at, "is not a list")
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(raw)
        if len(kinds) != len(raw):
            raise self.wrong(at, f"has {len(raw)} values instead of {len(kinds)}")
        return tuple(self.value(one, item, f"{at}[{i}]") for i, (one, item) in enumerate(zip(kinds, raw, strict=True)))

    def _plain(self, kind: type, within: Within | None, raw: Any, at: str) -> Any:
        if kind in (int, float):
            return self._number(kind, within, raw, at)
        if not isinstance(raw, kind):
            raise self.wrong(at, f"is {shown(raw)}, not {_NAMES.get(kind, kind.__name__)}")
        return raw

    def _number(self, kind: type, within: Within | None, raw: Any, at: str) -> Any:
        known = within or (_COUNT if kind is int else _FINITE)
        fits = isinstance(raw, int) or (kind is float and isinstance(raw, float))
        if not fits or isinstance(raw, bool) or raw not in known:
            what = "a whole number" if kind is int else "a number"
            raise self.wrong(at, f"is {shown(raw)}, not {what} {known}")
        return kind(raw)


class Fields:
    """Typed access to one object of a file whose other keys are nobody's concern here."""

    def __init__(self, raw: Any, origin: Origin, at: str = "") -> None:
        if not isinstance(raw, dict):
            raise origin.wrong(at, f"is {shown(raw)}, not an object")
        self.raw: Mapping[str, Any] = raw
        self._origin, self._prefix = origin, f"{at}." if at else ""

    def wrong(self, key: str, what: str) -> VlmTrtError:
        return self._origin.wrong(f"{self._prefix}{key}", what)

    def section(self, key: str) -> "Fields":
        return Fields(self._found(key, None), self._origin, f"{self._prefix}{key}")

    def whole(self, key: str, within: Within, default: int | None = None) -> int:
        return int(self._read(Annotated[int, within], key, default))

    def number(self, key: str, within: Within, default: float | None = None) -> float:
        return float(self._read(Annotated[float, within], key, default))

    def flag(self, key: str, default: bool | None = None) -> bool:
        return bool(self._read(bool, key, default))

    def text(self, key: str) -> str:
        return str(self._read(str, key, None))

    def items(self, key: str) -> list[Any]:
        found = self._found(key, None)
        if not isinstance(found, list):
            raise self.wrong(key, f"is {shown(found)}, not a list")
        return found

    def _read(self, kind: Any, key: str, default: Any) -> Any:
        return self._origin.value(kind, self._found(key, default), f"{self._prefix}{key}")

    def _found(self, key: str, default: Any) -> Any:
        found = self.raw.get(key, default)
        if found is None:
            raise self.wrong(key, "is missing")
        return found


_NAMES = {str: "a text", bool: "true or false"}


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, with their ranges."""
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in fields(kind)}


def _figure(value: float) -> str:
    """An end of a range as a person writes it."""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"
