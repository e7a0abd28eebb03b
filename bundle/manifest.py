"""The manifest `bundle.json`: the only state of a bundle, as frozen data, read strictly."""

import json
import math
import re
import types
from collections import Counter
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry
from vlm_trt.bundle.errors import BundleError, IncompatibleError
from vlm_trt.bundle.signature import Component, Precision

SCHEMA = 2


@dataclass(frozen=True)
class Source:
    """The checkpoint the bundle was made from."""

    checkpoint: str  # its folder, as an absolute path
    files: dict[str, str]  # file name → sha256, or "size:…" where only that is compared


@dataclass(frozen=True)
class Verification:
    """A verdict, valid for exactly the graphs, and the engines, that it names."""

    precision: Precision
    backend: str
    passed: bool
    report: str  # path in the bundle
    graphs: tuple[str, ...]  # identities, sorted
    engines: tuple[str, ...]  # identities, sorted; none where the graphs themselves ran
    created: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Manifest:
    schema: int
    version: str  # of vlm-trt
    model: ModelConfig
    limits: Limits
    source: Source
    tokenizer: FileEntry
    graphs: tuple[GraphEntry, ...] = ()
    engines: tuple[EngineEntry, ...] = ()
    verifications: tuple[Verification, ...] = ()

    def graph(self, component: Component, precision: Precision) -> GraphEntry | None:
        """The entry of that graph, if the bundle has it."""
        found = (one for one in self.graphs if (one.component, one.precision) == (component, precision))
        return next(found, None)

    def precisions(self) -> tuple[Precision, ...]:
        """The precisions of which the bundle has at least one graph."""
        have = {entry.precision for entry in self.graphs}
        return tuple(precision for precision in Precision if precision in have)

    def variants(self) -> dict[str, tuple[EngineEntry, ...]]:
        """Engines that belong together, by the name of their folder."""
        names = dict.fromkeys(engine.variant for engine in self.engines)
        return {name: tuple(engine for engine in self.engines if engine.variant == name) for name in names}

    def is_stale(self, engine: EngineEntry) -> bool:
        """Whether the graph that the engine was built from is no longer in the bundle."""
        graph = self.graph(engine.component, engine.precision)
        return graph is None or graph.identity != engine.graph

    def verification(self, precision: Precision, engines: tuple[EngineEntry, ...] = ()) -> Verification | None:
        """The verdict on the graphs as they are now, or on those engines of them; one about others does not count."""
        entries = [self.graph(component, precision) for component in Component]
        now = tuple(sorted(entry.identity for entry in entries if entry is not None))
        run = tuple(sorted(engine.identity for engine in engines))
        found = (v for v in self.verifications if (v.precision, v.graphs, v.engines) == (precision, now, run))
        return next(found, None) if len(now) == len(Component) else None

    def without(self, graphs: set[tuple[Component, Precision]]) -> "Manifest":
        """The manifest without those graphs and without verdicts that named them; their engines stay, stale."""
        kept = tuple(one for one in self.graphs if (one.component, one.precision) not in graphs)
        identities = {one.identity for one in kept}
        verdicts = tuple(v for v in self.verifications if set(v.graphs) <= identities)
        return replace(self, graphs=kept, verifications=verdicts)

    def with_graphs(self, graphs: tuple[GraphEntry, ...]) -> "Manifest":
        """The manifest with those graphs added or replaced."""
        base = self.without({(one.component, one.precision) for one in graphs})
        return replace(base, graphs=(*base.graphs, *graphs))

    def without_engines(self, paths: set[str]) -> "Manifest":
        """The manifest without the engines whose plans lie there, and without verdicts that named them."""
        kept = tuple(engine for engine in self.engines if engine.plan.path not in paths)
        identities = {engine.identity for engine in kept}
        verdicts = tuple(v for v in self.verifications if set(v.engines) <= identities)
        return replace(self, engines=kept, verifications=verdicts)

    def with_engines(self, engines: tuple[EngineEntry, ...]) -> "Manifest":
        """The manifest with those engines added, or in place of those at the same paths."""
        base = self.without_engines({engine.plan.path for engine in engines})
        return replace(base, engines=(*base.engines, *engines))

    def with_verification(self, verdict: Verification) -> "Manifest":
        """The manifest with that verdict in place of an older one on the same graphs or engines."""
        about = verdict.precision, verdict.engines
        others = tuple(v for v in self.verifications if (v.precision, v.engines) != about)
        return replace(self, verifications=(*others, verdict))

    def files(self) -> tuple[FileEntry, ...]:
        """Every file the manifest vouches for."""
        graphs = (file for entry in self.graphs for file in entry.files)
        return (self.tokenizer, *graphs, *(engine.plan for engine in self.engines))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def dumps(self) -> str:
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"


def loads(text: str, where: str) -> Manifest:
    """The manifest from its JSON text.

    Args:
        text: content of bundle.json.
        where: named in errors.
    Raises:
        BundleError: not JSON, a field missing, unknown, mistyped, or a path that leaves the bundle.
        IncompatibleError: written by another schema.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not JSON ({error}); export the checkpoint again") from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA:
        raise IncompatibleError(
            f"{where} has schema {schema!r}, this version reads {SCHEMA}; export the checkpoint again with this version"
        )
    manifest = _build(Manifest, raw, where, "")
    _require_paths(manifest, where)
    _require_single(manifest, where)
    return manifest


def _require_paths(manifest: Manifest, where: str) -> None:
    """Every path lies in the bundle, and every digest is one."""
    files = manifest.files()
    for path in (*(file.path for file in files), *(verdict.report for verdict in manifest.verifications)):
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in path or "\0" in path:
            raise BundleError(f"{where}: the path {path!r} leaves the bundle; do not use this bundle")
    for file in files:
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise _wrong(where, f"the sha256 of {file.path}", f"is {file.sha256!r}, no sha256")


def _require_single(manifest: Manifest, where: str) -> None:
    """One entry per graph, one verdict per precision: of two, a passed verdict could hide a failed one."""
    graphs = Counter(f"the {entry.precision} {entry.component} graph" for entry in manifest.graphs)
    verdicts = Counter(f"the verdict on {v.precision} {' '.join(v.engines)}".rstrip() for v in manifest.verifications)
    paths = Counter(f"the path {file.path!r}" for file in manifest.files())
    for what, count in (*graphs.items(), *verdicts.items(), *paths.items()):
        if count > 1:
            raise _wrong(where, what, f"is there {count} times")


T = TypeVar("T")


def _build(kind: type[T], raw: Any, where: str, at: str) -> T:
    """A dataclass from a JSON object: every field present and of its type, none unknown."""
    if not isinstance(raw, dict):
        raise _wrong(where, at, "is not an object")
    assert is_dataclass(kind)
    names = {field.name for field in fields(kind)}
    if unknown := sorted(set(raw) - names):
        raise _wrong(where, f"{at}{unknown[0]}", "is unknown to this version")
    if missing := sorted(names - set(raw)):
        raise _wrong(where, f"{at}{missing[0]}", "is missing")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], raw[name], where, f"{at}{name}") for name in names})


def _value(kind: Any, raw: Any, where: str, at: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return None if raw is None else _value(next(k for k in get_args(kind) if k is not type(None)), raw, where, at)
    if origin is tuple:
        if not isinstance(raw, list):
            raise _wrong(where, at, "is not a list")
        return tuple(_value(get_args(kind)[0], item, where, f"{at}[{i}]") for i, item in enumerate(raw))
    if origin is dict:
        if not isinstance(raw, dict):
            raise _wrong(where, at, "is not an object")
        return {key: _value(get_args(kind)[1], item, where, f"{at}.{key}") for key, item in raw.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return _build(kind, raw, where, f"{at}.")
    if issubclass(kind, StrEnum):
        if raw not in list(kind):
            raise _wrong(where, at, f"is {raw!r}, not one of {', '.join(kind)}")
        return kind(raw)
    if kind is float and isinstance(raw, int) and not isinstance(raw, bool):
        return float(raw)
    if not isinstance(raw, kind) or (isinstance(raw, bool) and kind is not bool):
        raise _wrong(where, at, f"is {raw!r}, not of type {kind.__name__}")
    if kind is float and not math.isfinite(raw) and not at.startswith("verifications"):  # a failed check may say NaN
        raise _wrong(where, at, f"is {raw}, no finite number")
    if kind is int and raw < 0:
        raise _wrong(where, at, f"is {raw}, a negative number")
    return raw


def _wrong(where: str, at: str, what: str) -> BundleError:
    return BundleError(f"{where}: {at.rstrip('.') or 'the top level'} {what}; export the checkpoint again")
