"""What an application on Ray is told, as `args` of a serve.yaml and as options of `vlm-trt serve --ray`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import UsageError
from vlm_trt.serving.settings import Settings

# Fields of Settings that a serve.yaml may set: plain values, and such as mean the same behind Ray.
SETTINGS = (
    "max_body_bytes",
    "max_per_key",
    "max_pictures",
    "request_timeout_s",
    "media_hosts",
    "page",
    "speculation",
    "stuck_after_s",
)


@dataclass(frozen=True)
class AppArgs:
    """Plain values: they travel between machines."""

    models: dict[str, str]  # name → folder of the bundle, the same on every node
    precision: str | None = None
    backend: str = "auto"
    threads: int | None = None
    unverified: bool = False
    api_key_file: str | None = None  # read where the application is built
    settings: dict[str, Any] = field(default_factory=dict)  # of SETTINGS

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "AppArgs":
        """
        Raises:
            UsageError: a name is none of these, a model lacks, or a value is of another type.
        """
        known = [one.name for one in fields(cls)]
        if unknown := next((name for name in given if name not in known), None):
            raise UsageError(f"args has no {unknown}; it has {', '.join(known)}")
        models = given.get("models")
        if not isinstance(models, Mapping) or not models or not all(isinstance(one, str) for one in models.values()):
            raise UsageError("args.models names no bundle; write each as name: /folder/of/the/bundle")
        settings = given.get("settings") or {}
        if unknown := next((name for name in settings if name not in SETTINGS), None):
            raise UsageError(f"args.settings has no {unknown}; it has {', '.join(SETTINGS)}")
        return cls(**{**given, "models": dict(models), "settings": dict(settings)})

    def written(self) -> dict[str, Any]:
        """As `read` takes it, without what is by default so."""
        default = AppArgs({})
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if getattr(self, one.name) != getattr(default, one.name)
        }

    def server(self, key_digests: tuple[bytes, ...] = ()) -> Settings:
        """The settings of a server that is told these."""
        given = self.settings
        if "media_hosts" in given:
            given = given | {"media_hosts": frozenset(given["media_hosts"])}
        return Settings(key_digests=key_digests, **given)

    def folder(self, name: str) -> Path:
        return Path(self.models[name])
