"""What one check of a verification found."""

from dataclasses import dataclass

from vlm_trt.verification.figures import Figures


@dataclass(frozen=True)
class Outcome:
    """What one check found; `failures` are sentences."""

    figures: tuple[Figures, ...] = ()
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
