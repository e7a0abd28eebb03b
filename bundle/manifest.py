"""The manifest `bundle.json`: the only state of a bundle, as frozen data, read strictly.

It vouches for every file, and by `sha256`, over its own content, for itself.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Annotated, Any

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry, PackedEntry, Quantization
from vlm_trt.bundle.errors import BundleError, IncompatibleError
from vlm_trt.bundle.fields import ANYTHING, Origin
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.reading import parse_json, shown

SCHEMA = 11
OF_ADAPTERS = "lora "  # what the files of adapters begin with in `Source.files`
SEAL = "sha256"  # the field that holds the hash of all others


@dataclass(frozen=True)
class Source:
    """The checkpoint the bundle was made from."""

    checkpoint: str  # its folder, as an absolute path
    files: dict[str, str]  # file name → sha256, or "size:…" where only that is compared
    adapters: tuple[str, ...] = ()  # folders of LoRA adapters that were merged into it, in order, as absolute paths


@dataclass(frozen=True)
class Verification:
    """A verdict, valid for exactly the graphs, the engines and the rest of the bundle that it names."""

    precision: Precision
    backend: str
    passed: bool
    report: str  # path in the bundle
    graphs: tuple[str, ...]  # identities, sorted
    engines: tuple[str, ...]  # identities, sorted; none where the graphs themselves ran
    created: str
    figures: dict[str, Annotated[float, ANYTHING]]
    about: dict[str, str]  # sha256 of what else answers depend on, as `Manifest.about` has it


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
    quantizations: tuple[Quantization, ...] = ()
    verifications: tuple[Verification, ...] = ()
    packed: tuple[PackedEntry, ...] = ()

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

    def quantization(self, precision: Precision) -> Quantization | None:
        """How the graphs of that precision were made; None for those that were exported."""
        return next((one for one in self.quantizations if one.precision is precision), None)

    def about(self, precision: Precision) -> dict[str, str]:
        """What a verdict on graphs of that precision is about beside their files, each by its sha256."""
        made = self.quantization(precision)
        parts: dict[str, Any] = {"model": self.model, "limits": self.limits}
        if made is not None:
            parts["quantization"] = made
        return {
            "tokenizer": self.tokenizer.sha256,
            **{name: _digest(asdict(part)) for name, part in parts.items()},
        }

    def verification(self, precision: Precision, engines: tuple[EngineEntry, ...] = ()) -> Verification | None:
        """The verdict on the graphs as they are now, or on those engines of them; one about others does not count."""
        found = self._latest(precision, engines)
        return None if found is None or self.changed_since(found) else found

    def outdated(self, precision: Precision, engines: tuple[EngineEntry, ...] = ()) -> tuple[str, ...]:
        """What has changed since the graphs, or those engines, had a verdict; nothing where they never had one."""
        found = self._latest(precision, engines)
        return () if found is None else self.changed_since(found)

    def changed_since(self, verdict: Verification) -> tuple[str, ...]:
        """What is no longer what the verdict is about: "graphs", or a key of `about`."""
        now = self.about(verdict.precision)
        differs = [part for part in (*now, *verdict.about) if now.get(part) != verdict.about.get(part)]
        graphs = self.identities(verdict.precision)
        if len(graphs) != len(self.model.components) or graphs != verdict.graphs:
            differs.insert(0, "graphs")
        return tuple(dict.fromkeys(differs))

    def identities(self, precision: Precision) -> tuple[str, ...]:
        """Those of the graphs of that precision, sorted."""
        return tuple(sorted(one.identity for one in self.graphs if one.precision is precision))

    def verdict(
        self,
        precision: Precision,
        backend: str,
        passed: bool,
        report: str,
        figures: Mapping[str, float],
        engines: tuple[EngineEntry, ...] = (),
    ) -> Verification:
        """A verdict of now about these graphs, or the engines built from them, and all that it depends on.

        Args:
            precision: which graphs.
            backend: where they ran.
            passed: whether they were shown equal to the model, or their answers good enough.
            report: its path in the bundle.
            figures: the worst of what was measured.
            engines: those that ran; none where the graphs themselves did.
        """
        return Verification(
            precision=precision,
            backend=backend,
            passed=passed,
            report=report,
            graphs=self.identities(precision),
            engines=tuple(sorted(engine.identity for engine in engines)),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            figures=dict(figures),
            about=self.about(precision),
        )

    def _latest(self, precision: Precision, engines: tuple[EngineEntry, ...]) -> Verification | None:
        run = tuple(sorted(engine.identity for engine in engines))
        return next((v for v in self.verifications if (v.precision, v.engines) == (precision, run)), None)

    def without(self, graphs: set[tuple[Component, Precision]]) -> "Manifest":
        """The manifest without those graphs and without what was said of them; their engines stay, stale."""
        kept = tuple(one for one in self.graphs if (one.component, one.precision) not in graphs)
        identities = {one.identity for one in kept}
        verdicts = tuple(v for v in self.verifications if set(v.graphs) <= identities)
        changed = {precision for _, precision in graphs}
        made = tuple(one for one in self.quantizations if one.precision not in changed)
        return replace(self, graphs=kept, quantizations=made, verifications=verdicts)

    def with_graphs(self, graphs: tuple[GraphEntry, ...], made: Quantization | None = None) -> "Manifest":
        """The manifest with those graphs added or replaced; `made` says how quantized ones were."""
        base = self.without({(one.component, one.precision) for one in graphs})
        quantizations = (*base.quantizations, *([] if made is None else [made]))
        return replace(base, graphs=(*base.graphs, *graphs), quantizations=quantizations)

    def alone(self, graphs: tuple[GraphEntry, ...]) -> "Manifest":
        """The manifest of a bundle that holds only those graphs, of which nothing is known yet."""
        return replace(self, graphs=graphs, engines=(), quantizations=(), verifications=(), packed=())

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

    def without_packed(self, paths: set[str]) -> "Manifest":
        """The manifest without the packed graphs that lie there."""
        return replace(self, packed=tuple(one for one in self.packed if one.graph.path not in paths))

    def with_packed(self, packed: tuple[PackedEntry, ...]) -> "Manifest":
        """The manifest with those packed graphs added, or in place of those at the same paths."""
        base = self.without_packed({one.graph.path for one in packed})
        return replace(base, packed=(*base.packed, *packed))

    def with_verification(self, verdict: Verification) -> "Manifest":
        """The manifest with that verdict in place of an older one on the same graphs or engines."""
        about = verdict.precision, verdict.engines
        others = tuple(v for v in self.verifications if (v.precision, v.engines) != about)
        return replace(self, verifications=(*others, verdict))

    def files(self) -> tuple[FileEntry, ...]:
        """Every file the manifest vouches for."""
        graphs = (file for entry in self.graphs for file in entry.files)
        packed = (file for entry in self.packed for file in entry.files)
        return (self.tokenizer, *graphs, *(engine.plan for engine in self.engines), *packed)

    def to_json(self) -> dict[str, Any]:
        """What stands in the file, the hash of the rest included."""
        return sealed(asdict(self))

    def dumps(self) -> str:
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n"


def loads(text: str | bytes, where: str) -> Manifest:
    """The manifest from its JSON text.

    Args:
        text: content of bundle.json.
        where: named in errors.
    Raises:
        BundleError: not JSON, not what was written, a field missing, unknown, mistyped or out of its range, or a path
            that leaves the bundle.
        IncompatibleError: written by another schema.
    """
    try:
        raw = parse_json(text)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}); export the checkpoint again") from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if schema != SCHEMA or isinstance(schema, bool):
        raise IncompatibleError(
            f"{where} has schema {shown(schema)}, this version reads {SCHEMA}; export the checkpoint again with this "
            "version"
        )
    _require_sealed(raw, where)
    content = {name: value for name, value in raw.items() if name != SEAL}
    manifest = Origin(where, BundleError, _REMEDY).build(Manifest, content)
    _require_paths(manifest, where)
    _require_weights(manifest, where)
    _require_single(manifest, where)
    return manifest


_REMEDY = "export the checkpoint again"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a manifest with its hash, first after schema and version."""
    values = {name: value for name, value in content.items() if name != SEAL}
    seal = {SEAL: _digest(values)}
    return {name: values[name] for name in ("schema", "version") if name in values} | seal | values


def _require_sealed(raw: dict[str, Any], where: str) -> None:
    """
    Raises:
        BundleError: the content is not what was written.
    """
    if SEAL not in raw:
        raise _wrong(where, SEAL, "is missing")
    if raw[SEAL] != sealed(raw)[SEAL]:
        raise BundleError(
            f"{where} is not as it was written (its {SEAL} does not fit its content): it is damaged, or was edited by "
            "hand; bring the original back from a copy, or export the checkpoint again"
        )


def _digest(values: Any) -> str:
    """sha256 of JSON values, however they are laid out."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return sha256(text.encode()).hexdigest()


def _require_paths(manifest: Manifest, where: str) -> None:
    """Every path lies in the bundle, and every digest is one."""
    files = manifest.files()
    for path in (*(file.path for file in files), *(verdict.report for verdict in manifest.verifications)):
        parts = PurePosixPath(path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in path or "\0" in path:
            raise BundleError(f"{where}: the path {path!r} leaves the bundle; do not use this bundle")
    for engine in manifest.engines:  # the folder's name is the variant's
        if PurePosixPath(engine.plan.path).parts[0] != "engines" or len(PurePosixPath(engine.plan.path).parts) != 3:
            raise _wrong(where, f"the engine {shown(engine.plan.path)}", "is not in a folder of engines/")
    for file in files:
        if not re.fullmatch("[0-9a-f]{64}", file.sha256):
            raise _wrong(where, f"the sha256 of {file.path}", f"is {file.sha256!r}, no sha256")


def _require_weights(manifest: Manifest, where: str) -> None:
    """Of every graph of the model, and of no other."""
    for entry in manifest.graphs:
        if (entry.weights is not None) is not entry.component.has_weights:
            what = "are missing" if entry.component.has_weights else "are there, and it has none"
            raise _wrong(where, f"the weights of the {entry.precision} {entry.component} graph", what)


def _require_single(manifest: Manifest, where: str) -> None:
    """One entry per graph, one verdict per precision: of two, a passed verdict could hide a failed one."""
    graphs = Counter(f"the {entry.precision} {entry.component} graph" for entry in manifest.graphs)
    made = Counter(f"the quantization of {one.precision}" for one in manifest.quantizations)
    verdicts = Counter(f"the verdict on {v.precision} {' '.join(v.engines)}".rstrip() for v in manifest.verifications)
    paths = Counter(f"the path {file.path!r}" for file in manifest.files())
    for what, count in (*graphs.items(), *made.items(), *verdicts.items(), *paths.items()):
        if count > 1:
            raise _wrong(where, what, f"is there {count} times")


def _wrong(where: str, at: str, what: str) -> BundleError:
    return BundleError(f"{where}: {at} {what}; {_REMEDY}")
