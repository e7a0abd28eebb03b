"""What the lint and the inspection say of a graph or an engine."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing found in a graph or an engine."""

    rule: str
    severity: Literal["error", "warning"]
    where: str  # the node, tensor or axis
    sentence: str  # where it is, what it does, what to do
