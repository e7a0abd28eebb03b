"""Temporary."""

from dataclasses import dataclass
from pathlib import Path

from bundle.config import Limits, ModelConfig
from bundle.signature import Component, Precision


@dataclass(frozen=True)
class Finding:
    severity: str
    sentence: str


def lint_graph(
    graph: Path, component: Component, precision: Precision, model: ModelConfig, limits: Limits, target: str
) -> tuple[Finding, ...]:
    return ()
