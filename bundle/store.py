"""A bundle folder: opened with its promises checked, changed so that no reader ever sees half a change.

bundle.json                                 the manifest
tokenizer/<file>                            as published
graphs/<precision>/<component>.onnx         the graph, and beside it its <component>.weights, but for the sampler, which
                                            has none; of a quantized one also what made it of the float one,
                                            <component>.calibration.json
engines/<variant>/<component>.plan          an engine; the variant names backend, version, GPU, precision and graphs
packed/<precision>/<component>.onnx         the graph as ONNX Runtime computes it on one kind of CPU, and its .weights
reports/                                    what verification found
"""

import os
from collections.abc import Iterable
from pathlib import Path

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.digests import DigestCache, sha256_of
from vlm_trt.bundle.entries import EngineEntry, FileEntry, GraphEntry, PackedEntry, Quantization
from vlm_trt.bundle.errors import BundleError, StorageError, UsageError
from vlm_trt.bundle.manifest import Manifest, Verification, loads
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.reading import read_bytes, require_regular
from vlm_trt.bundle.staging import (
    in_turn,
    publish_folder,
    publish_inside,
    replace_file,
    storage_errors,
    sync,
)
from vlm_trt.bundle.stale import remove_unheld, staged_folders

MANIFEST = "bundle.json"
NEW = "bundle"  # the name under which a new bundle is staged in the empty folder that it fills


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
            UsageError: the path is no text.
        """
        require_text(path)
        if not path.is_dir():
            if path.exists():
                raise BundleError(f"{path} is a file; a bundle is a folder, which vlm-trt export makes")
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

    def check(self, entries: Iterable[GraphEntry | EngineEntry | PackedEntry]) -> None:
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

    def lacks(self, file: FileEntry) -> bool:
        """Whether a file is missing, or not as the manifest says."""
        try:
            self._require(file)
        except BundleError:
            return True
        return False

    def record(self, verdict: Verification, report: str) -> None:
        """Stores a verdict and its report."""
        with in_turn(self.path):
            manifest = _read_manifest(self.path).with_verification(verdict)
            target = self.path / verdict.report
            with storage_errors(target):
                target.parent.mkdir(exist_ok=True)
            replace_file(target, report)
            replace_file(self.path / MANIFEST, manifest.dumps())
        self.manifest = manifest

    def _require(self, file: FileEntry) -> Path:
        path = self.path / file.path
        try:
            require_regular(path)
        except FileNotFoundError:
            raise BundleError(f"{path} is missing; {_remedy(file)}") from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read ({error.strerror}); {_remedy(file)}") from None
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


def require_text(path: Path) -> None:
    """
    Raises:
        UsageError: the path has bytes that are no UTF-8, with which ONNX Runtime and TensorRT open no file.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"the path {os.fsencode(path)!r} is no UTF-8, so no graph in it can be opened; rename the folder"
        ) from None


def _remedy(file: FileEntry) -> str:
    made_by = {"engines": "build it again: vlm-trt build", "packed": "pack it again: vlm-trt pack"}
    return made_by.get(file.path.partition("/")[0], "export the checkpoint again")


def how_to_make(precision: Precision, bundle: Path | str = "BUNDLE") -> str:
    """The command that adds graphs of that precision to a bundle."""
    if precision.quantization is None:
        return f"export it: vlm-trt export CHECKPOINT {bundle} --precision {precision.floating}"
    cache = "" if precision.cache_dtype == precision.dtype else f" --cache {precision.cache_dtype}"
    return (
        f"quantize it: vlm-trt quantize {bundle} --recipe {precision.quantization} --activations {precision.floating}"
        f"{cache}"
    )


def graph_path(component: Component, precision: Precision) -> str:
    """Where a graph lies in a bundle."""
    return f"graphs/{precision}/{component}.onnx"


def weights_path(component: Component, precision: Precision) -> str:
    """Where the weights of a graph lie that has any."""
    assert component.has_weights
    return f"graphs/{precision}/{component}.weights"


def packed_paths(component: Component, precision: Precision) -> tuple[str, str]:
    """Where the packed form of a graph lies, and its weights."""
    return f"packed/{precision}/{component}.onnx", f"packed/{precision}/{component}.weights"


def calibration_path(component: Component, precision: Precision) -> str:
    """Where a bundle keeps what a quantized graph was made with."""
    return f"graphs/{precision}/{component}.calibration.json"


def precision_of(graph: Path) -> Precision | None:
    """The precision of a graph that lies where `graph_path` says; None for a file elsewhere."""
    return next((precision for precision in Precision if precision == graph.parent.name), None)


def file_entry(root: Path, relative: str, sha256: str | None = None) -> FileEntry:
    """The entry of a file as it lies there; `sha256` where it was computed while writing."""
    path = root / relative
    return FileEntry(relative, path.stat().st_size, sha256_of(path) if sha256 is None else sha256)


def staging_of(target: Path) -> Path:
    """Beside what a new bundle is staged: the folder to make, or a name in the empty folder that is there already."""
    return target / NEW if target.exists() else target


def publish_new(staging: Path, target: Path, manifest: Manifest) -> None:
    """Makes a folder with all its files, staged where `staging_of` says, a bundle.

    Raises:
        StorageError: the target appeared meanwhile.
    """
    replace_file(staging / MANIFEST, manifest.dumps())
    if staging.parent == target.absolute():
        with in_turn(target):
            for left in staged_folders(target):
                remove_unheld(left)
            publish_inside(staging, last=MANIFEST)
    elif target.exists():
        raise StorageError(f"{target} exists; choose another folder or remove it")
    else:
        publish_folder(staging, target)


def publish_graphs(
    bundle: Bundle, staging: Path, graphs: tuple[GraphEntry, ...], made: Quantization | None = None
) -> None:
    """Moves staged graphs into an existing bundle; `made` says how quantized ones were.

    In between, a kill leaves a bundle that opens and lacks these graphs: first the manifest forgets them, then the
    files take their places, then the manifest names them. All content is on disk before the first of these steps.
    """
    files = [file.path for entry in graphs for file in entry.files]
    for path in files:
        sync(staging / path)
    with in_turn(bundle.path), storage_errors(bundle.path):
        bare = _read_manifest(bundle.path).without({(entry.component, entry.precision) for entry in graphs})
        _exchange(bundle, staging, bare, bare.with_graphs(graphs, made), files)


def publish_engines(bundle: Bundle, staging: Path, engines: tuple[EngineEntry, ...]) -> None:
    """Moves staged engines into an existing bundle, as `publish_graphs` moves graphs.

    Engines of the same component, precision, backend and target that their graph has left behind are removed.
    """
    files = [engine.plan.path for engine in engines]
    for path in files:
        sync(staging / path)
    with in_turn(bundle.path), storage_errors(bundle.path):
        current = _read_manifest(bundle.path)
        kinds = {(one.component, one.precision, one.backend, one.target) for one in engines}
        outdated = {
            old.plan.path
            for old in current.engines
            if (old.component, old.precision, old.backend, old.target) in kinds and current.is_stale(old)
        }
        bare = current.without_engines({*outdated, *files})
        _exchange(bundle, staging, bare, bare.with_engines(engines), files)
        for path in outdated.difference(files):
            (bundle.path / path).unlink(missing_ok=True)


def publish_packed(bundle: Bundle, staging: Path, packed: tuple[PackedEntry, ...]) -> None:
    """Moves staged packed graphs into an existing bundle, as `publish_graphs` moves graphs."""
    files = [file.path for one in packed for file in one.files]
    for path in files:
        sync(staging / path)
    with in_turn(bundle.path), storage_errors(bundle.path):
        bare = _read_manifest(bundle.path).without_packed({one.graph.path for one in packed})
        _exchange(bundle, staging, bare, bare.with_packed(packed), files)


def forget_lost(path: Path) -> tuple[str, ...]:
    """Takes engines and packed graphs out of a manifest whose files are missing, or not as it says: those can be made
    again, by commands that could not even open the bundle. Their paths."""
    with in_turn(path), storage_errors(path):
        bundle = Bundle(path, _read_manifest(path))
        manifest = bundle.manifest
        files = [file for engine in manifest.engines for file in engine.files]
        files += [file for one in manifest.packed for file in one.files]
        lost = {file.path for file in files if bundle.lacks(file)}
        packed = {one.graph.path for one in manifest.packed if lost & {file.path for file in one.files}}
        if lost:
            replace_file(path / MANIFEST, manifest.without_engines(lost).without_packed(packed).dumps())
    return tuple(sorted(lost))


def _exchange(bundle: Bundle, staging: Path, bare: Manifest, full: Manifest, files: Iterable[str]) -> None:
    """Staged files to their places, unknown to the manifest meanwhile; what takes room is written before."""
    replace_file(staging / MANIFEST, full.dumps())
    for folder in {(bundle.path / path).parent for path in files}:
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)
    replace_file(bundle.path / MANIFEST, bare.dumps())
    for path in (*files, MANIFEST):
        (staging / path).replace(bundle.path / path)
        sync((bundle.path / path).parent)
    bundle.manifest = full


def _read_manifest(path: Path) -> Manifest:
    where = path / MANIFEST
    if where.is_symlink():
        raise BundleError(f"{where} is a link; copy the file in its place or export again")
    try:
        text = read_bytes(where)
    except FileNotFoundError:
        raise BundleError(
            f"{path} holds no {MANIFEST}, so it is no bundle; export makes one in a folder that is new or empty: "
            "vlm-trt export CHECKPOINT FOLDER"
        ) from None
    except OSError as error:
        raise BundleError(f"{where} cannot be read ({error.strerror}); export the checkpoint again") from None
    return loads(text, str(where))
