"""A bundle on disk → an engine in memory, every file checked before it is used."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import GraphEntry, PackedEntry
from vlm_trt.bundle.errors import VerificationError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.backend import Backend, Session
from vlm_trt.runtime.cache import KVCache
from vlm_trt.runtime.engine import Engine
from vlm_trt.runtime.variants import limits_of


def open_engine(bundle: Bundle, precision: Precision, backend: Backend) -> Engine:
    """The bundle's graphs of one precision, or the engines built from them, loaded.

    Raises:
        BundleError: a graph is missing, or a file is not what the manifest says.
        IncompatibleError: the backend runs engines, and none fits.
        ResourceError: not enough memory.
    """
    manifest = bundle.manifest
    engines = backend.engines(bundle, precision)
    limits = limits_of(manifest.limits, engines)
    # Before the weights: those of an engine that streams them take what is left.
    cache = KVCache(backend, manifest.model, limits, precision)
    if engines:
        bundle.check(engines)
        sessions = {one.component: backend.open(bundle.path / one.plan.path, one) for one in engines}
    else:
        graphs = {component: bundle.graph(component, precision) for component in manifest.model.components}
        files = {component: backend.packed(bundle, one) or one for component, one in graphs.items()}
        bundle.check(files.values())
        sessions = _loaded(bundle, files, backend)
    return Engine(manifest.model, limits, precision, backend, sessions, cache)


def _loaded(
    bundle: Bundle, files: Mapping[Component, GraphEntry | PackedEntry], backend: Backend
) -> dict[Component, Session]:
    """A session for each graph, the largest begun first."""
    paths = {
        component: bundle.path / one.graph.path
        for component, one in sorted(files.items(), key=lambda item: -sum(file.size for file in item[1].files))
    }
    if backend.loads_beside == 1:
        return {component: backend.open(path) for component, path in paths.items()}
    with ThreadPoolExecutor(backend.loads_beside, "loading") as pool:
        coming = {component: pool.submit(backend.open, path) for component, path in paths.items()}
        try:
            return {component: one.result() for component, one in coming.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after a failure the rest is not begun


def require_verified(bundle: Bundle, precision: Precision, backend: Backend) -> None:
    """
    Raises:
        VerificationError: the graphs of this precision, or the engines built from them, are unverified, changed
            since, or failed.
    """
    engines = backend.engines(bundle, precision)
    if engines and precision.quantization is not None:
        require_judged(bundle, precision)
    verdict = bundle.manifest.verification(precision, engines)
    if verdict is not None and verdict.passed:
        return
    if changed := bundle.manifest.outdated(precision, engines):
        unknown = f"are not verified as they are now (changed since: {', '.join(changed)})"
    else:
        unknown = "were built and never run" if engines else "are not verified"
    state = unknown if verdict is None else "failed verification"
    if engines:
        what = f"engines of {engines[0].variant} {state}"
        command = f"vlm-trt verify {bundle.path} --precision {precision} --backend {backend.name}"
    else:
        what = f"graphs {state}"
        command = f"vlm-trt verify {bundle.path} --precision {precision}"
    raise VerificationError(
        f"{bundle.path}: the {precision} {what}, so their answers cannot be trusted; run `{command}`, or accept that "
        "with --unverified"
    )


def require_judged(bundle: Bundle, precision: Precision) -> None:
    """An engine may compute what its quantized graphs compute, and their answers be bad.

    Raises:
        VerificationError: the graphs' answers were not judged, or did not hold.
    """
    verdict = bundle.manifest.verification(precision)
    if verdict is None or not verdict.passed:
        how = "were not judged" if verdict is None else "did not hold"
        raise VerificationError(
            f"{bundle.path}: the answers of the {precision} graphs, which the engines were built from, {how}; run "
            f"`vlm-trt verify {bundle.path} --precision {precision}`, or accept that with --unverified"
        )
