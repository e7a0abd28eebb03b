"""What an application on Ray is told, as `args` of a serve.yaml and by the options of `vlm-trt serve --ray`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.fields import Origin, Within
from vlm_trt.serving.settings import Settings

_SECONDS = Within(1e-6, 86_400)


@dataclass(frozen=True)
class ServerArgs:
    """Of `Settings` those that mean the same behind Ray; None: as they ship."""

    max_body_bytes: int | None = None
    max_per_key: Annotated[int, Within(1, 100_000)] | None = None  # at each ingress
    max_pictures: int | None = None
    request_timeout_s: Annotated[float, _SECONDS] | None = None
    media_hosts: tuple[str, ...] | None = None
    page: bool | None = None
    speculation: bool | None = None
    stuck_after_s: Annotated[float, _SECONDS] | None = None


@dataclass(frozen=True)
class AppArgs:
    """Plain values: they travel between machines."""

    models: dict[str, str]  # name → folder of the bundle, the same on every node
    precision: str | None = None
    backend: str = "auto"
    threads: Annotated[int, Within(1, 1024)] | None = None
    unverified: bool = False
    api_key_file: str | None = None  # read where the application is built
    settings: ServerArgs = ServerArgs()

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> "AppArgs":
        """
        Raises:
            UsageError: a name is none of these, a model lacks, or a value is of another type.
        """
        origin = Origin("args of the application", UsageError, "correct it in the serve.yaml")
        all_of_them = asdict(cls({})) | dict(given)
        if isinstance(settings := all_of_them["settings"], Mapping):
            all_of_them["settings"] = asdict(ServerArgs()) | dict(settings)
        found = origin.build(cls, all_of_them)
        if not found.models:
            raise origin.wrong("models", "names no bundle: each is name: /folder/of/the/bundle")
        return found

    def written(self) -> dict[str, Any]:
        """As `read` takes it, without what is by default so."""
        default = AppArgs({})
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "settings"}
        found = {name: value for name, value in told.items() if value != getattr(default, name)}
        settings = self._given()
        if "media_hosts" in settings:
            settings["media_hosts"] = list(settings["media_hosts"])
        return found | ({"settings": settings} if settings else {})

    def server(self, key_digests: tuple[bytes, ...] = ()) -> Settings:
        """The settings of a server that is told these."""
        given = self._given()
        if "media_hosts" in given:
            given["media_hosts"] = frozenset(given["media_hosts"])
        return Settings(key_digests=key_digests, **given)

    def folder(self, name: str) -> Path:
        return Path(self.models[name])

    def _given(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self.settings).items() if value is not None}
