"""What to quantize and how: data, read from TOML. The shipped ones are in `calibration/recipes/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.fields import SHARE, Within
from vlm_trt.bundle.reading import read_toml, shown

SHIPPED = Path(__file__).parent / "recipes"
BLOCKS = (16, 32, 64, 128, 256)


class Kind(StrEnum):
    """What becomes of one matrix."""

    FLOAT = "float"  # left as it is
    INT8 = "int8"  # weights and activations in 8 bits
    INT8_WEIGHT = "int8-weight"  # weights in 8 bits, one scale per output
    INT4 = "int4"  # weights in 4 bits, one scale per block of inputs, and output
    FP8 = "fp8"  # weights and activations as floats of 8 bits (E4M3)

    @property
    def rounds_activations(self) -> bool:
        return self in (Kind.INT8, Kind.FP8)


class Observer(StrEnum):
    """How the range of an activation is chosen from what was seen of it."""

    MAX = "max"
    PERCENTILE = "percentile"
    ENTROPY = "entropy"
    MSE = "mse"


Balance = float | Literal["search"]


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized."""

    kind: Kind  # of every matrix that no rule names; the precision is called after it
    max_drop: float  # of any task's score, 0…1, that the result may cost
    block: int = 128  # inputs that share a scale, for int4
    observer: Observer = Observer.PERCENTILE
    percentile: float = 99.99
    # Moves range between activations and weights of the products behind a norm. A number is SmoothQuant's exponent;
    # "search" tries several and keeps the one with the least error, as AWQ does; None leaves them.
    balance: Balance | None = None
    cache: Kind = Kind.FLOAT  # of keys and values: float, or int8
    layers: Mapping[str, Kind] = field(default_factory=dict)  # pattern → kind; the last that fits counts

    def kind_of(self, layer: str) -> Kind:
        """What becomes of the matrix of that name, such as "decoder.layers.3.mlp.down"."""
        fitting = [kind for pattern, kind in self.layers.items() if fnmatchcase(layer, pattern)]
        return fitting[-1] if fitting else self.kind

    @property
    def needs_samples(self) -> bool:
        """Whether activations have to be seen."""
        kinds = (self.kind, self.cache, *self.layers.values())
        return self.balance is not None or any(kind.rounds_activations for kind in kinds)


def shipped() -> tuple[str, ...]:
    """The names of the recipes that come with the program."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def read_recipe(name: str) -> Recipe:
    """A shipped recipe by its name, or any by its file.

    Raises:
        UsageError: no such recipe, or something in it that is unknown or wrong.
    """
    path = SHIPPED / f"{name}.toml" if name in shipped() else Path(name)
    if not path.is_file():
        raise UsageError(f"there is no recipe {name}; give a TOML file, or one of {', '.join(shipped())}")
    try:
        raw = read_toml(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); give a TOML file") from None
    except ValueError as error:
        raise UsageError(f"{path} is no TOML ({error}); docs/quantization.md shows a recipe") from None
    return recipe_of(raw, str(path))


def recipe_of(raw: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from its fields as TOML or JSON has them.

    Raises:
        UsageError: something in it is unknown, missing or wrong; `where` is named.
    """
    known = [one.name for one in fields(Recipe)]
    if unknown := [key for key in raw if key not in known]:
        raise UsageError(f"{where}: {unknown[0]!r} is unknown; a recipe may say {', '.join(known)}")
    if missing := [key for key in ("kind", "max_drop") if key not in raw]:
        raise UsageError(f"{where}: {missing[0]!r} is missing; every recipe says kind and max_drop")
    return Recipe(**{key: _READERS[key](raw[key], f"{where}: {key}") for key in raw if raw[key] is not None})


def _kind(raw: Any, where: str) -> Kind:
    if raw not in list(Kind):
        raise UsageError(f"{where} is {shown(raw)}; choose one of {', '.join(Kind)}")
    return Kind(raw)


def _quantized(raw: Any, where: str) -> Kind:
    if _kind(raw, where) is Kind.FLOAT:
        raise UsageError(f"{where} is 'float', which quantizes nothing; layers can be kept in float by [layers]")
    return Kind(raw)


def _cache(raw: Any, where: str) -> Kind:
    if raw not in (Kind.FLOAT, Kind.INT8):
        raise UsageError(f"{where} is {shown(raw)}; choose one of {Kind.FLOAT}, {Kind.INT8}")
    return Kind(raw)


def _observer(raw: Any, where: str) -> Observer:
    if raw not in list(Observer):
        raise UsageError(f"{where} is {shown(raw)}; choose one of {', '.join(Observer)}")
    return Observer(raw)


def require_max_drop(share: float) -> None:
    """
    Raises:
        UsageError: no share from 0 to 1; NaN would let anything pass.
    """
    if share not in SHARE:
        raise UsageError(f"the score that a task may lose is {share}; give --max-drop a share {SHARE}")


def _number(within: Within) -> Any:
    def read(raw: Any, where: str) -> float:
        if isinstance(raw, bool) or not isinstance(raw, int | float) or raw not in within:
            raise UsageError(f"{where} is {shown(raw)}; give a number {within}")
        return float(raw)

    return read


def _block(raw: Any, where: str) -> int:
    if raw not in BLOCKS or isinstance(raw, bool):
        raise UsageError(f"{where} is {shown(raw)}; choose one of {', '.join(map(str, BLOCKS))}")
    return int(raw)


def _balance(raw: Any, where: str) -> Balance:
    if raw == "search":
        return "search"
    try:
        return float(_number(SHARE)(raw, where))
    except UsageError:
        raise UsageError(f"{where} is {shown(raw)}; give a number from 0 to 1, or 'search'") from None


def _layers(raw: Any, where: str) -> dict[str, Kind]:
    if not isinstance(raw, dict):
        raise UsageError(f'{where} is {shown(raw)}; write a table [layers] of lines like "decoder.lm_head" = "float"')
    return {pattern: _kind(kind, f"{where}.{pattern}") for pattern, kind in raw.items()}


_READERS: dict[str, Any] = {
    "kind": _quantized, "max_drop": _number(SHARE), "block": _block, "observer": _observer,
    "percentile": _number(Within(50, 100)), "balance": _balance, "cache": _cache, "layers": _layers,
}  # fmt: skip
