"""What the config of a model says to us: written by `repository.py`, read by `backend.py`.

Triton's parameters are texts by name; one that stands in no config has its default.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.fields import Origin, Within
from vlm_trt.serving.settings import Settings

_FLAGS = {"true": True, "false": False}
_FLAG_NAMES, _NUMBER_NAMES = ("unverified", "speculation"), ("threads", "max_waiting", "request_timeout_s")
# What a server allows that no parameter changes: pictures, and what requests hold together.
LIMITS = Settings()


@dataclass(frozen=True)
class ModelSettings:
    """How a bundle answers. Names and words are those of `vlm-trt serve`."""

    bundle: str  # its folder on the server; a relative one lies in the model's folder
    backend: str = "auto"
    precision: str | None = None  # None: those that the backend prefers
    threads: Annotated[int, Within(1, 1024)] | None = None
    unverified: bool = False
    speculation: bool | None = None
    max_waiting: Annotated[int, Within(0, 100_000)] = LIMITS.max_waiting  # requests without a slot
    request_timeout_s: Annotated[float, Within(1e-6, 86_400)] = LIMITS.request_timeout_s

    def parameters(self) -> dict[str, str]:
        """Name → text, of what is not left to its default."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) != one.default}
        return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in found.items()}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSettings":
        """From the config that Triton hands to a model.

        Raises:
            UsageError: a parameter that is unknown, missing, or has no value of its kind.
        """
        given = {name: _read(name, one["string_value"]) for name, one in config.get("parameters", {}).items()}
        defaults = {one.name: one.default for one in fields(cls) if one.name != "bundle"}
        origin = Origin("config.pbtxt, parameters", UsageError, "correct it, or write the repository again")
        return origin.build(cls, {**defaults, **given})

    def folder(self, model_folder: Path) -> Path:
        """The bundle's folder, on the server."""
        return model_folder / self.bundle


def _read(name: str, text: str) -> Any:
    """A text as what it stands for; where it stands for nothing of that kind, as it is, to be refused."""
    if name in _FLAG_NAMES:
        return _FLAGS.get(text, text)
    if name in _NUMBER_NAMES:
        for kind in (int, float):
            with suppress(ValueError):
                return kind(text)
    return text
