"""Which steps a stage has."""

import argparse
from collections.abc import Callable, Iterator

from benchmarks.gpu import baselines, golden, install, official, quantized, rtx, smoke
from benchmarks.gpu.kit import Device, Kit
from benchmarks.gpu.steps import Record, Step

_STEPS: dict[str, Callable[[Kit], Iterator[Step]]] = {
    "install": install.steps,
    "smoke": smoke.steps,
    "golden": golden.steps,
    "official": official.steps,
    "baselines": baselines.steps,
    "quantized": quantized.steps,
    "rtx": rtx.steps,
}


def run_inside(arguments: argparse.Namespace) -> None:
    """Runs one stage in this process."""
    (stage,) = arguments.stages
    kit = Kit(
        arguments.kit.resolve(),
        arguments.scratch.resolve(),
        arguments.out.resolve(),
        Device(arguments.device),
        arguments.size,
        tuple(arguments.precision),
    )
    Record(kit.out / f"{stage}.json").run(_STEPS[stage](kit))
