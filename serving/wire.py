"""JSON bodies → frozen dataclasses, every mistake a 400 that names its field and says what is allowed.

What a field may be stands with it, as `Annotated[int, Within(…)]`. A null is a field left out. Fields that nobody knows
are collected, not refused: clients send more than any server carries out.
"""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vlm_trt.bundle.fields import Origin
from vlm_trt.bundle.reading import parse_json, shown
from vlm_trt.serving.errors import ApiError, refused

T = TypeVar("T")
MOST_DEPTH = 64
# A body is read in one go, which stops every other thread: 200,000 values take 50 ms, and no request needs as many.
MOST_VALUES = 200_000


@dataclass(frozen=True)
class Wire(Origin):
    """Reads one body."""

    where: str = "the body"
    error: type[ApiError] = ApiError
    remedy: str = ""
    unknown: set[str] = field(default_factory=set)  # fields of the top level that nobody knows

    def wrong(self, at: str, what: str) -> ApiError:
        if what == "is missing":
            return refused(at, "is missing; send it", "missing_required_parameter")
        return refused(at or self.where, what)

    def build(self, kind: type[T], raw: Any, at: str = "") -> T:
        if not isinstance(raw, dict):
            raise self.wrong(at, f"is {shown(raw)}, not an object")
        assert is_dataclass(kind)
        hints, prefix = _hints(kind), f"{at}." if at else ""
        given = {name: value for name, value in raw.items() if value is not None}
        found = {name: self.value(hints[name], given[name], prefix + name) for name in hints if name in given}
        for one in fields(kind):
            if one.name not in found and one.default is MISSING and one.default_factory is MISSING:
                raise self.wrong(prefix + one.name, "is missing")
        if not at:
            self.unknown.update(given.keys() - hints.keys())
        return kind(**found)

    def value(self, kind: Any, raw: Any, at: str) -> Any:
        """As Origin's, and a text where there may be something else as well."""
        kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ()
        if str not in kinds:
            return super().value(kind, raw, at)
        if isinstance(raw, str):
            return raw
        others = [one for one in kinds if one not in (str, type(None))]
        if not others:
            raise self.wrong(at, f"is {shown(raw)}, not a text")
        if get_origin(others[0]) is tuple and not isinstance(raw, list):
            raise self.wrong(at, f"is {shown(raw)}, neither a text nor a list")
        return super().value(others[0], raw, at)


def parse(body: bytes, what: str = "the body", kind: type = dict) -> Any:
    """The object, or the list, that a body holds.

    Args:
        body: as it came.
        what: it is called in sentences.
        kind: of Python's what it is to be.
    Raises:
        ApiError: it is no JSON object or list in UTF-8, names a key twice, is nested too deep, or holds NaN.
    """
    word = "object" if kind is dict else "list"
    if sum(map(body.count, (b",", b"[", b"{"))) > MOST_VALUES:  # commas of texts count too; base64 has none
        raise ApiError(400, f"{what} holds more than {MOST_VALUES:,} values or commas; send fewer", "invalid_json")
    try:
        found = parse_json(body)
    except UnicodeDecodeError:
        raise ApiError(400, f"{what} is no UTF-8; encode it as JSON in UTF-8", "invalid_json") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"{what} is no JSON, from {at} on; send one JSON {word}", "invalid_json") from None
    except ValueError as error:  # a sentence of `parse_json`'s
        raise ApiError(400, f"{what} cannot be read: {error}; send plain JSON", "invalid_json") from None
    if not isinstance(found, kind):
        raise ApiError(400, f"{what} is {shown(found)}; send one JSON {word}", "invalid_json")
    _require_plain(found, what)
    return found


def _require_plain(body: Any, what: str) -> None:
    """
    Raises:
        ApiError: a number that JSON does not have, which Python's reader lets pass, or nesting that nothing needs.
    """
    level: list[Any] = [body]
    for _ in range(MOST_DEPTH):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            raise ApiError(400, f"{what} holds a number that is not finite; send finite ones", "invalid_json")
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ApiError(400, f"{what} is nested deeper than {MOST_DEPTH} levels; send a flatter one", "invalid_json")


def require_carried_out(raw: Mapping[str, Any], unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuses fields that this server does not carry out, unless they ask for what it does anyhow.

    Args:
        raw: the body.
        unsupported: name → the values that change nothing.
    Raises:
        ApiError: which one.
    """
    for name in unsupported.keys() & {key for key, value in raw.items() if value is not None}:
        if not any(_same(raw[name], one) for one in unsupported[name]):
            allowed = [json.dumps(one) for one in unsupported[name]]
            instead = f", or send {' or '.join(allowed)}" if allowed else ""
            raise refused(name, f"is not carried out by this server; leave it out{instead}", "unsupported_parameter")


def _same(value: Any, other: Any) -> bool:
    """Equal, and no bool for a number."""
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


@cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {one.name: hints[one.name] for one in fields(kind)}
