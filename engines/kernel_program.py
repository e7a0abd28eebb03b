"""The kernel program of each profile, read from a serialized plan without a GPU. Best effort: the format is private.

A TensorRT-RTX 1.7 plan holds, per profile, its program as text: a `header` with the program's inputs and outputs,
`descriptors` with the dims of every tensor, and `main` with one line per kernel, in order. Names end in a version
(".1") and, from the second profile on, " [profile 1]" before it. Seen in plans built for sm75, sm89 and sm120.
"""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlm_trt.bundle.signature import Axis

_START, _MAIN, _END = b"header {\n", b"\nmain {\n", b"\n}\n"
_LONGEST = 64 * 2**20  # bytes of one program; 32 layers take about 2 MB
_QUOTED = re.compile(r'"([^"]*)"')
_LIST = r'(?:^|[\s{])%s=\{((?:\s*"[^"]*")*)\s*\}'
_TENSOR = re.compile(r'^\s+(?:sub_)?tensor=\{.*?\bdims=\{([^}]*)\}.*?\bname="([^"]*)"', re.MULTILINE)
_KERNEL = re.compile(r'^\s+(\w+)=\{ name=("[^"]*"|\S+) ')
_VERSION = re.compile(r"\.\d+$")
_PROFILE = re.compile(r" \[profile (\d+)\]")


@dataclass(frozen=True)
class Kernel:
    """One launch. A tensor that is both read and written is updated in place."""

    kind: str  # "function" (made by the compiler), "fully_connected", "runtime_fusion", …
    name: str  # such as "_gemv_mha_v1"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """What one profile of an engine runs."""

    profile: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    kernels: tuple[Kernel, ...]  # in the order they run
    axes: dict[str, tuple[Axis, ...]]  # tensor → its axes; a `str` varies at run time


def read_programs(plan: Path) -> tuple[Program, ...]:
    """The program of every profile, by profile; empty where the plan holds none that can be read.

    Args:
        plan: the serialized engine; it is mapped, not loaded.
    Raises:
        OSError: it cannot be read.
    """
    found: dict[int, Program] = {}
    for text in _texts(plan):
        program = _program(text)
        if program.kernels:
            known = found.get(program.profile)
            found[program.profile] = program if known is None else _joined(known, program)
    return tuple(found[profile] for profile in sorted(found))


def _texts(plan: Path) -> Iterator[str]:
    if plan.stat().st_size == 0:
        return
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = data.find(_START)
        while start >= 0:
            main = data.find(_MAIN, start, start + _LONGEST)
            end = data.find(_END, main + len(_MAIN), start + _LONGEST) if main >= 0 else -1
            if end < 0:
                return
            text = data[start:end].decode("utf-8", "replace")
            if "accelerators={*}" not in text[: text.find("descriptors {")]:  # else: the fall-back of one kernel
                yield text
            start = data.find(_START, end)


def _program(text: str) -> Program:
    header, _, body = text.partition("descriptors {")
    tensors, _, main = body.partition("\nmain {\n")
    inputs, outputs = _names(header, "inputs"), _names(header, "outputs")
    profiles = [int(number) for number in _PROFILE.findall(" ".join(_QUOTED.findall(header)))]
    return Program(
        profile=max(profiles, default=0),
        inputs=inputs,
        outputs=outputs,
        kernels=tuple(kernel for line in main.split("\n") if (kernel := _kernel(line)) is not None),
        axes={_plain(name): _axes(dims) for dims, name in _TENSOR.findall(tensors)},
    )


def _kernel(line: str) -> Kernel | None:
    begun = _KERNEL.match(line)
    if begun is None or begun[1] == "shape_call":  # computes shapes on the host
        return None
    inputs = _names(line, "input_args") or _names(line, "input")
    outputs = _names(line, "output_args") or _names(line, "output")
    return Kernel(begun[1], _plain(begun[2].strip('"')), inputs, outputs)


def _joined(first: Program, second: Program) -> Program:
    """A graph that was compiled in several pieces."""
    return Program(
        first.profile,
        first.inputs + second.inputs,
        first.outputs + second.outputs,
        first.kernels + second.kernels,
        {**first.axes, **second.axes},
    )


def _names(text: str, key: str) -> tuple[str, ...]:
    found = re.search(_LIST % key, text, re.MULTILINE)
    return tuple(_plain(name) for name in _QUOTED.findall(found[1])) if found else ()


def _axes(dims: str) -> tuple[Axis, ...]:
    return tuple(int(axis) if axis.isdigit() else axis.strip('"') for axis in re.findall(r'"[^"]*"|\S+', dims))


def _plain(name: str) -> str:
    """The tensor's name in the graph."""
    return _VERSION.sub("", _PROFILE.sub("", name))
