"""One object of a published config.json: typed values, over those of its class where the file says nothing.

Every key is known: read, required to have one value, or harmless. An unknown key is an error, because a model that
differs in something we did not read would be exported wrong.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.fields import Fields, Origin, Within
from vlm_trt.bundle.parts import Activation
from vlm_trt.bundle.reading import shown
from vlm_trt.families.config_files import origin_of, read_object
from vlm_trt.families.published.defaults import ABSENT_SECTIONS, CLASS_DEFAULTS
from vlm_trt.families.published.leftovers import HARMLESS, NEUTRAL

# Source: transformers' `ACT2FN`.
ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "quick_gelu": Activation.QUICK_GELU,
}

# Of a checkpoint that is quantized as it is published; `families/packing.py` reads it.
QUANTIZATION = "quantization_config"


class Section(Fields):
    """Reading a key makes it known; `close` refuses the others."""

    def __init__(self, raw: Any, origin: Origin, at: str = "", defaults: Mapping[str, Any] | None = None) -> None:
        super().__init__(raw, origin, at)
        self._given = self.raw
        self.raw = {**(defaults or {}), **self._given}
        self.model_type = str(self.raw.get("model_type", ""))
        self._known = {"model_type"}
        self._inner: list[Section] = []

    def has(self, key: str) -> bool:
        """Whether the file itself gives a value; null is none."""
        self._known.add(key)
        return self._given.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether there is no value: null in the file, or nothing and the class has none either."""
        self._known.add(key)
        return self.raw.get(key) is None

    def nested(self, key: str) -> "Section":
        """An object that is there."""
        return self._with(Section(self._found(key, None), self._origin, f"{self._prefix}{key}"))

    def part(self, key: str, *model_types: str) -> "Section":
        """The config of a part of the model.

        Args:
            key: under which it stands; where it does not, all of it is the class's.
            model_types: those that are supported; the first is that of a part which does not say.
        Raises:
            UnsupportedError: it is of another one.
        """
        if not self.has(key):
            defaults = {**CLASS_DEFAULTS[model_types[0]], **ABSENT_SECTIONS[f"{self.model_type}.{key}"]}
            return self._with(Section({"model_type": model_types[0]}, self._origin, f"{self._prefix}{key}", defaults))
        raw = Section(self.raw[key], self._origin, f"{self._prefix}{key}").raw
        named = raw.get("model_type", model_types[0])
        if named not in model_types:
            raise self.unsupported(f"{key}.model_type", f"is {shown(named)}; supported: {', '.join(model_types)}")
        return self._with(Section(raw, self._origin, f"{self._prefix}{key}", CLASS_DEFAULTS[named]))

    def activation(self, key: str) -> Activation:
        """
        Raises:
            UnsupportedError: it is none of ours.
        """
        name = self.text(key)
        if name not in ACTIVATIONS:
            raise self.unsupported(key, f"is {shown(name)}; supported: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def whole_or_none(self, key: str, within: Within) -> int | None:
        return None if self.is_null(key) else self.whole(key, within)

    def number_or_none(self, key: str, within: Within) -> float | None:
        return None if self.is_null(key) else self.number(key, within)

    def wholes(self, key: str, within: Within) -> tuple[int, ...]:
        """A list of whole numbers."""
        found: tuple[int, ...] = self._read(tuple[Annotated[int, within], ...], key, None)
        return found

    def triple(self, key: str, within: Within) -> tuple[float, float, float]:
        """A list of three numbers, one per colour."""
        number = Annotated[float, within]
        found: tuple[float, float, float] = self._read(tuple[number, number, number], key, None)
        return found

    def require(self, key: str, wanted: Any) -> None:
        """
        Raises:
            UnsupportedError: it has another value; none is as good as that one.
        """
        if not self.is_null(key) and self.raw[key] != wanted:
            raise self.unsupported(key, f"is {shown(self.raw[key])}; only {wanted!r} is supported")

    def accept(self, *keys: str) -> None:
        """Keys that change no output here, whatever they say."""
        self._known.update(keys)

    def unsupported(self, key: str, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self._origin.where}: {self._prefix}{key} {what}")

    def close(self) -> None:
        """
        Raises:
            UnsupportedError: there is a key, here or further in, that nobody has read and that may matter.
        """
        if unknown := self._unknown():
            raise UnsupportedError(
                f"{self._origin.where}: unknown key {unknown[0]!r}"
                f"{f' and {len(unknown) - 1} more' if unknown[1:] else ''}; it may change the model's output, so "
                "nothing is exported. Remove it if you know that it does not"
            )

    def _unknown(self) -> list[str]:
        for key, wanted in NEUTRAL.items():
            if key in self._given and key not in self._known:
                self.require(key, wanted)
        known = self._known | HARMLESS | NEUTRAL.keys()
        unknown = sorted(key for key in self._given if key not in known and not key.startswith("_"))
        return [f"{self._prefix}{key}" for key in unknown] + [key for inner in self._inner for key in inner._unknown()]

    def _with(self, inner: "Section") -> "Section":
        self._inner.append(inner)
        return inner

    def _found(self, key: str, default: Any) -> Any:
        self._known.add(key)
        return super()._found(key, default)


def read_section(path: Path, model_type: str) -> Section:
    """A config file as a whole.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    defaults = {"model_type": model_type, **CLASS_DEFAULTS[model_type]}
    found = Section(read_object(path), origin_of(path), defaults=defaults)
    found.accept(QUANTIZATION)
    return found
