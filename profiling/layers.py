"""Where a stage's time goes: the backend's own timing of every node or layer, summed up by the parts of the model."""

import json
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.signature import SCOPES
from vlm_trt.profiling.measure import once
from vlm_trt.profiling.workload import Workload, requests
from vlm_trt.runtime.choice import Choice
from vlm_trt.runtime.ort import CpuBackend, OrtSession
from vlm_trt.runtime.packed import PackedCpuBackend
from vlm_trt.runtime.session import EngineSession
from vlm_trt.runtime.trt import TensorRtBackend

_WORDS = re.compile(r"[\w.]+")
# Timed are so many answers of so many tokens, after one that warms up: two single runs name other parts first.
_ANSWERS, _NEW_TOKENS = 5, 8
WHAT_A_SPREAD_MEANS = (
    "Several answers were timed: parts whose ranges overlap may change places in the next profile, and only one that "
    "stands clear of the others takes more time than they do."
)

# Stages are called what is done, where that is not what does it.
_STAGES = {Component.SAMPLER: "sampling"}
_COMPONENTS = {
    **{_STAGES.get(component, component.value): component for component in Component},
    **dict.fromkeys(("prefill", "decode_step"), Component.DECODER),
}

# A node or layer in one run: its name, what it does, its milliseconds.
Timed = tuple[str, str, float]


@dataclass(frozen=True)
class Layer:
    """One part of the model in one stage."""

    stage: str  # "vision_encoder", "resampler", "prefill", "decode_step" or "sampling"
    layer: str  # "layer 12", or "embedding", "head", "norm", …
    part: str  # "attention", "mlp", "norm", …
    operator: str  # what takes most of its time: an ONNX operator, or the name of an engine's layer
    milliseconds: float  # of one run of the stage: the median of all runs
    low: float  # and its spread: p10
    high: float  # and p90 of the runs
    runs: int
    share: float  # of the medians of the stage's parts


def layers(choice: Choice, workload: Workload) -> tuple[Layer, ...]:
    """The parts of every stage in the runs of several answers; those that take most time first.

    Timing costs time itself, a microsecond or two a node: shares are right, sums are a little too large. Nothing is
    returned for ONNX Runtime on CUDA.

    Args:
        choice: the graphs.
        workload: pictures and prompt; one request is enough.
    Raises:
        UsageError: the workload does not fit the bundle.
    """
    if isinstance(choice.backend, TensorRtBackend):
        return _engine_layers(choice, workload)
    backend = choice.backend
    if not isinstance(backend, CpuBackend) or type(backend) not in (CpuBackend, PackedCpuBackend):
        return ()
    with TemporaryDirectory() as folder:
        timed = _Timed(Path(folder), backend.threads)
        model = Choice(choice.bundle, timed, choice.precision, 0).load()
        asked = requests(model, Workload(workload.images, workload.prompt_tokens, _NEW_TOKENS, 1))
        once(model, asked, 1)  # warm up
        for _ in range(_ANSWERS):
            once(model, asked, _NEW_TOKENS)
        events = {component: session.events() for component, session in timed.sessions.items()}
    found = []
    for component, own in events.items():
        parts = parts_of(choice.bundle.path / choice.bundle.graph(component, choice.precision).graph.path)
        for stage, runs in _stages(component, own).items():
            found += summed_up(stage, [[_timed(event) for event in run] for run in runs], parts)
    return tuple(sorted(found, key=lambda one: -one.milliseconds))


def _engine_layers(choice: Choice, workload: Workload) -> tuple[Layer, ...]:
    """TensorRT's own timing of the layers that it has made of the nodes."""
    model = choice.load()
    asked = requests(model, Workload(workload.images, workload.prompt_tokens, _NEW_TOKENS, 1))
    once(model, asked, 2)  # warm up
    seen: dict[str, dict[str, list[float]]] = {}

    def report(component: Component, phase: str, layer: str, milliseconds: float) -> None:
        stage = _STAGES.get(component, component.value)
        if component is Component.DECODER:
            stage = "decode_step" if phase == "decode" else "prefill"
        seen.setdefault(stage, {}).setdefault(layer, []).append(milliseconds)

    for component, session in model.engine.sessions.items():
        assert isinstance(session, EngineSession)
        session.time_layers(partial(report, component))
    for _ in range(_ANSWERS):
        once(model, asked, _NEW_TOKENS)
    found = []
    for stage, own in seen.items():
        component = _COMPONENTS[stage]
        parts = parts_of(choice.bundle.path / choice.bundle.graph(component, choice.precision).graph.path)
        found += summed_up(stage, _engine_runs(stage, own), parts)
    return tuple(sorted(found, key=lambda one: -one.milliseconds))


def _engine_runs(stage: str, seen: Mapping[str, Sequence[float]]) -> list[list[Timed]]:
    """What was reported of each layer, one run after the other, as runs of the stage: chunks of a prefill are one."""
    reported = max(len(times) for times in seen.values())
    together = reported // _ANSWERS if stage == "prefill" else 1
    runs: list[list[Timed]] = [[] for _ in range(reported // together)]
    for layer, times in seen.items():
        for at, milliseconds in enumerate(times):
            runs[at // together].append((layer, layer, milliseconds))
    return runs


class _Timed(CpuBackend):
    """The CPU, with sessions that write down the time of every node."""

    def __init__(self, folder: Path, threads: int | None) -> None:
        super().__init__(threads)
        self._folder = folder
        self.sessions: dict[Component, _TimedSession] = {}

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        options = self.options(file)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._folder / file.stem)
        session = _TimedSession(file, options)
        self.sessions[Component(file.stem)] = session
        return session


class _TimedSession(OrtSession):
    def events(self) -> list[dict[str, Any]]:
        """What was written down; nothing is from now on."""
        return list(json.loads(Path(self._session.end_profiling()).read_text()))


def _stages(component: Component, events: Iterable[Mapping[str, Any]]) -> dict[str, list[list[Mapping[str, Any]]]]:
    """Node events of every run, by stage, those of the answer that warmed up left out.

    Every answer has the same runs: of a vision encoder as many as its pictures need; of the decoder those of the
    prompt, which are one of the stage, and then the decode steps, the first of which is not counted.
    """
    runs: list[list[Mapping[str, Any]]] = []
    nodes: list[Mapping[str, Any]] = []
    for event in sorted(events, key=lambda one: float(one["ts"]) + float(one.get("dur", 0))):
        if event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time"):
            nodes.append(event)
        elif event["name"] == "model_run":
            runs.append(nodes)
            nodes = []
    if component is not Component.DECODER:
        return {_STAGES.get(component, component.value): runs[len(runs) // (_ANSWERS + 1) :]}
    steps = _NEW_TOKENS - 1
    chunks = (len(runs) - _ANSWERS * steps) // (_ANSWERS + 1)
    answers = [runs[at : at + chunks + steps] for at in range(chunks, len(runs), chunks + steps)]
    return {
        "prefill": [list(chain(*one[:chunks])) for one in answers],
        "decode_step": [step for one in answers for step in one[chunks + 1 :]],
    }


def _timed(event: Mapping[str, Any]) -> Timed:
    name = str(event["name"]).removesuffix("_kernel_time")
    return name, str(event["args"]["op_name"]), float(event["dur"]) / 1000


def summed_up(stage: str, runs: Sequence[Sequence[Timed]], parts: Mapping[str, tuple[str, str]]) -> list[Layer]:
    """The nodes or layers of every run, summed up by the model's parts, and what the runs have in common.

    Args:
        stage: of all the runs.
        runs: what was timed in each.
        parts: name of a node or value → layer and part, as `parts_of` has it.
    """
    times: dict[tuple[str, str], list[float]] = {}  # of a part in each run
    operators: dict[tuple[str, str], dict[str, float]] = {}  # in all runs together
    part_of = {name: _part_of(name, parts) for name in {name for run in runs for name, _, _ in run}}
    for at, run in enumerate(runs):
        for name, operator, milliseconds in run:
            part = part_of[name]
            times.setdefault(part, [0.0] * len(runs))[at] += milliseconds
            own = operators.setdefault(part, {})
            own[operator] = own.get(operator, 0.0) + milliseconds
    medians = {part: float(np.median(own)) for part, own in times.items()}
    whole = sum(medians.values())
    found = []
    for key, own_times in times.items():
        low, high = (float(one) for one in np.percentile(own_times, [10, 90]))
        own, median = operators[key], medians[key]
        most = max(own, key=own.__getitem__)
        found.append(Layer(stage, *key, most, median, low, high, len(runs), median / whole if whole else 0.0))
    return found


def parts_of(graph: Path) -> dict[str, tuple[str, str]]:
    """Node and value names of a graph → layer and part of the model."""
    model = onnx.load(graph, load_external_data=False)
    found: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        scopes = next((one.value for one in node.metadata_props if one.key == SCOPES), "['']")
        part = _named(literal_eval(scopes))
        for name in (node.name, *node.output):
            found[name] = part
    return found


def _named(scopes: list[str]) -> tuple[str, str]:
    """("layer 3", "mlp") of ["", "layers.3", "layers.3.mlp", "layers.3.mlp.down", "matmul"]."""
    module = scopes[-2] if len(scopes) > 1 else ""
    words = module.split(".")
    if words[0] == "layers" and len(words) > 1:
        part = words[2] if len(words) > 2 else "residual"
        return f"layer {words[1]}", "norm" if "norm" in part else part
    if module:
        return words[0], "norm" if "norm" in words[0] else words[0]
    return "model", "mask, embedding and head"


def _part_of(name: str, parts: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Of a node or layer as a backend calls it after its rewriting: "node_a_fused", "node_a+node_b [profile 1]".

    The first name in it that is known, or else the longest known name that it begins with.
    """
    if name in parts:
        return parts[name]
    for word in _WORDS.findall(name):
        if word in parts:
            return parts[word]
    known = [one for one in parts if one and name.startswith(one)]
    return parts[max(known, key=len)] if known else ("added by the backend", "casts and reorderings")
