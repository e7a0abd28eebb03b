"""Bundle in, verdict out: into `reports/` and the manifest. What was not shown equal is not verified."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bundle.errors import CheckpointError, VerificationError
from bundle.manifest import Verification
from bundle.signature import Component, Precision
from bundle.store import Bundle
from exporter.checkpoint import Checkpoint
from models.family import family
from runtime.backends import choose_backend, choose_precision
from runtime.load import open_engine
from verification.checks import (
    Decoded,
    Outcome,
    check_cache,
    check_decoder,
    check_swap,
    check_vision,
    decode_reference,
    pixels_of,
)
from verification.figures import TOLERANCES, Figures
from verification.reference import Reference
from verification.samples import samples

Progress = Callable[[str], None]
NEW_TOKENS = 6


@dataclass(frozen=True)
class Report:
    """What verification found. `passed` only if every check ran and none failed."""

    precision: Precision
    backend: str
    passed: bool
    figures: tuple[Figures, ...]
    failures: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    created: str

    def worst(self) -> dict[str, float]:
        """Largest relative difference and smallest cosine, per stage."""
        return {
            "relative": max(one.relative for one in self.figures),
            "cosine": min(one.cosine for one in self.figures),
        }


def verify(
    bundle_path: Path,
    against: Path | None = None,
    precision: str | None = None,
    backend_name: str = "auto",
    progress: Progress = lambda _: None,
) -> Report:
    """Compares a bundle's graphs with the model and records the verdict, whatever it is.

    Args:
        bundle_path: the bundle.
        against: the checkpoint; by default the one the bundle was exported from.
        precision: which graphs; by default the backend's preferred ones.
        backend_name: "auto", "cuda" or "cpu".
        progress: told what runs now.
    Returns:
        The report, also written to `reports/` and the manifest.
    Raises:
        VerificationError: the checkpoint is not there, or not the one the bundle was made from.
    """
    started = datetime.now(UTC)
    bundle = Bundle.open(bundle_path)
    backend = choose_backend(backend_name)
    chosen = choose_precision(backend, bundle.manifest.precisions(), precision)
    progress("load the checkpoint into the torch modules")
    reference = Reference(_source(bundle, against), bundle.manifest.model, family(bundle.manifest.model.family))
    progress(f"load the {chosen} graphs on {backend.name}")
    outcomes = list(_outcomes(bundle, reference, chosen, backend_name, progress))
    report = _report(chosen, backend.name, outcomes, started)
    _publish(bundle, report)
    return report
