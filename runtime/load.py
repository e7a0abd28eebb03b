"""A bundle on disk → an engine in memory, every file checked before it is used."""

from bundle.errors import VerificationError
from bundle.signature import Component, Precision
from bundle.store import Bundle
from runtime.backend import Backend
from runtime.engine import Engine


def open_engine(bundle: Bundle, precision: Precision, backend: Backend) -> Engine:
    """The bundle's three graphs of one precision, loaded.

    Raises:
        BundleError: a graph is missing, or a file is not what the manifest says.
        ResourceError: not enough memory.
    """
    entries = {component: bundle.graph(component, precision) for component in Component}
    bundle.check(entries.values())
    sessions = {component: backend.open(bundle.path / entry.graph.path) for component, entry in entries.items()}
    manifest = bundle.manifest
    return Engine(manifest.model, manifest.limits, precision, backend, sessions)


def require_verified(bundle: Bundle, precision: Precision) -> None:
    """
    Raises:
        VerificationError: the graphs of this precision are unverified, changed since, or failed.
    """
    verdict = bundle.manifest.verification(precision)
    if verdict is not None and verdict.passed:
        return
    what = "not verified" if verdict is None else "failed verification"
    raise VerificationError(
        f"{bundle.path}: the {precision} graphs are {what}, so their answers cannot be trusted; "
        f"run `vlm-trt verify {bundle.path} --precision {precision}`, or accept that with --unverified"
    )
