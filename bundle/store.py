"""A bundle folder: opened with its promises checked, changed so that no reader ever sees half a change.

bundle.json                                 the manifest
tokenizer/<file>                            as published
graphs/<precision>/<component>.onnx         the graph, and beside it its <component>.weights
engines/<variant>/<component>.plan          an engine; the variant names backend, version, GPU, precision and graphs
reports/                                    what verification found
"""

from collections.abc import Iterable
from pathlib import Path

from vlm_trt.bundle.digests import DigestCache, sha256_of
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry
from vlm_trt.bundle.errors import BundleError, StorageError
from vlm_trt.bundle.manifest import Manifest, Verification, loads
from vlm_trt.bundle.signature import Component, Precision
from vlm_trt.bundle.staging import exclusive, publish_folder, replace_file, storage_errors, sync

MANIFEST = "bundle.json"


class Bundle:
    """An opened bundle. The manifest is as it was when it was opened or last changed through this object."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """The bundle in that folder, every file there with the size the manifest says.

        Raises:
            BundleError: no bundle, a file missing or of another size, a symbolic or hard link.
            IncompatibleError: written by another schema.
        """
        if not path.is_dir():
            raise BundleError(f"{path} is not a folder; make a bundle with: vlm-trt export CHECKPOINT {path}")
        bundle = cls(path, _read_manifest(path))
        for file in bundle.manifest.files():
            bundle._require(file)
        return bundle

    def graph(self, component: Component, precision: Precision) -> GraphEntry:
        """The entry of that graph.

        Raises:
            BundleError: the bundle lacks it.
        """
        entry = self.manifest.graph(component, precision)
        if entry is None:
            part = "" if precision.quantization else f" --component {component}"
            raise BundleError(
                f"{self.path} has no {precision} {component} graph; {how_to_make(precision, self.path)}{part}"
            )
        return entry

    def check(self, entries: Iterable[GraphEntry | EngineEntry]) -> None:
        """Compares the sha256 of those graphs or engines, and of the tokenizer, with the manifest.

        Raises:
            BundleError: a file differs.
        """
        files = [self.manifest.tokenizer, *(file for entry in entries for file in entry.files)]
        cache = DigestCache()
        for file in files:
            self._compare(file, cache.digest(self._require(file)))
        cache.save()

    def check_all(self) -> None:
        """Reads every file again, whatever is remembered of it.

        Raises:
            BundleError: a file differs.
        """
        for file in self.manifest.files():
            self._compare(file, sha256_of(self._require(file)))

    def record(self, verdict: Verification, report: str) -> None:
        """Stores a verdict and its report."""
        with exclusive(self.path):
            manifest = _read_manifest(self.path).with_verification(verdict)
            target = self.path / verdict.report
            with storage_errors(target):
                target.parent.mkdir(exist_ok=True)
            replace_file(target, report)
            replace_file(self.path / MANIFEST, manifest.dumps())
        self.manifest = manifest

    def _require(self, file: FileEntry) -> Path:
        path = self.path / file.path
        if not path.is_file():
            raise BundleError(f"{path} is missing; {_remedy(file)}")
        if path.is_symlink() or not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{path} is a link that leaves the bundle; copy the file in its place or export again")
        stat = path.stat()
        if stat.st_nlink > 1:  # who holds the other name can change the file after its check
            raise BundleError(
                f"{path} is a hard link that {stat.st_nlink - 1} other name(s) share; replace it by a copy "
                "(cp -r makes copies of a whole bundle) or export again"
            )
        if stat.st_size != file.size:
            raise BundleError(f"{path} has {stat.st_size} bytes, the manifest says {file.size}; {_remedy(file)}")
        return path

    def _compare(self, file: FileEntry, digest: str) -> None:
        if digest != file.sha256:
            raise BundleError(
                f"{self.path / file.path} was changed after it was made (its sha256 is {digest[:12]}…, the manifest "
                f"says {file.sha256[:12]}…); {_remedy(file)}"
            )


def _remedy(file: FileEntry) -> str:
    return "build it again: vlm-trt build" if file.path.startswith("engines/") else "export the checkpoint again"


def how_to_make(precision: Precision, bundle: Path | str = "BUNDLE") -> str:
    """The command that adds graphs of that precision to a bundle."""
    if precision.quantization is None:
        return f"export it: vlm-trt export CHECKPOINT {bundle} --precision {precision}"
    return (
        f"quantize it: vlm-trt quantize {bundle} --recipe {precision.quantization} --activations {precision.floating}"
    )


def graph_paths(component: Component, precision: Precision) -> tuple[str, str]:
    """Where a graph and its weights lie in a bundle."""
    return f"graphs/{precision}/{component}.onnx", f"graphs/{precision}/{component}.weights"


def precision_of(graph: Path) -> Precision | None:
    """The precision of a graph that lies where `graph_paths` says; None for a file elsewhere."""
    return next((precision for precision in Precision if precision == graph.parent.name), None)


def file_entry(root: Path, relative: str, sha256: str | None = None) -> FileEntry:
    """The entry of a file as it lies there; `sha256` where it was computed while writing."""
    path = root / relative
    return FileEntry(relative, path.stat().st_size, sha256_of(path) if sha256 is None else sha256)


def publish_new(staging: Path, target: Path, manifest: Manifest) -> None:
    """Makes a staged folder with all its files a bundle.

    Raises:
        StorageError: the target appeared meanwhile.
    """
    if target.exists():
        raise StorageError(f"{target} exists; choose another folder or remove it")
    replace_file(staging / MANIFEST, manifest.dumps())
    publish_folder(staging, target)


def publish_graphs(bundle: Bundle, staging: Path, graphs: tuple[GraphEntry, ...]) -> None:
    """Moves staged graphs into an existing bundle.

    In between, a kill leaves a bundle that opens and lacks these graphs: first the manifest forgets them, then the
    files take their places, then the manifest names them.
    """
    with exclusive(bundle.path):
        current = _read_manifest(bundle.path)
        bare = current.without({(entry.component, entry.precision) for entry in graphs})
        replace_file(bundle.path / MANIFEST, bare.dumps())
        for file in (file for entry in graphs for file in entry.files):
            _move(staging / file.path, bundle.path / file.path)
        bundle.manifest = bare.with_graphs(graphs)
        replace_file(bundle.path / MANIFEST, bundle.manifest.dumps())


def publish_engines(bundle: Bundle, staging: Path, engines: tuple[EngineEntry, ...]) -> None:
    """Moves staged engines into an existing bundle, as `publish_graphs` moves graphs.

    Engines of the same component, precision, backend and target that their graph has left behind are removed.
    """
    with exclusive(bundle.path):
        current = _read_manifest(bundle.path)
        kinds = {(one.component, one.precision, one.backend, one.target) for one in engines}
        outdated = {
            old.plan.path
            for old in current.engines
            if (old.component, old.precision, old.backend, old.target) in kinds and current.is_stale(old)
        }
        bare = current.without_engines({*outdated, *(engine.plan.path for engine in engines)})
        replace_file(bundle.path / MANIFEST, bare.dumps())
        for path in outdated:
            (bundle.path / path).unlink(missing_ok=True)
        for engine in engines:
            _move(staging / engine.plan.path, bundle.path / engine.plan.path)
        bundle.manifest = bare.with_engines(engines)
        replace_file(bundle.path / MANIFEST, bundle.manifest.dumps())


def _move(source: Path, target: Path) -> None:
    """A staged file to its place, durably."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sync(source)
    source.replace(target)
    sync(target.parent)


def _read_manifest(path: Path) -> Manifest:
    where = path / MANIFEST
    if where.is_symlink():
        raise BundleError(f"{where} is a link; copy the file in its place or export again")
    try:
        text = where.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BundleError(f"{path} holds no {MANIFEST}, so it is no bundle; export a checkpoint to it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{where} cannot be read: {error}") from None
    return loads(text, str(where))
