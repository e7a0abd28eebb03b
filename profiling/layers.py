"""Where a stage's time goes: the backend's own timing of every node or layer, summed up by the parts of the model."""

import json
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.signature import Component
from vlm_trt.profiling.measure import once
from vlm_trt.profiling.workload import Workload, requests
from vlm_trt.runtime.model import Choice
from vlm_trt.runtime.ort import CpuBackend, OrtSession
from vlm_trt.runtime.session import EngineSession
from vlm_trt.runtime.trt import TensorRtBackend

_SCOPES = "pkg.torch.onnx.name_scopes"
_WORDS = re.compile(r"[\w.]+")
_NEW_TOKENS = 8


@dataclass(frozen=True)
class Layer:
    """One part of the model in one stage."""

    stage: str  # "vision_encoder", "resampler", "prefill" or "decode_step"
    layer: str  # "layer 12", or "embedding", "head", "norm", …
    part: str  # "attention", "mlp", "norm", …
    operator: str  # what takes most of its time: an ONNX operator, or the name of an engine's layer
    milliseconds: float  # of one run of the stage
    share: float  # of the stage's nodes


def layers(choice: Choice, workload: Workload) -> tuple[Layer, ...]:
    """The parts of every stage, of one answer; those that take most time first.

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
    if type(choice.backend) is not CpuBackend:
        return ()
    with TemporaryDirectory() as folder:
        timed = _Timed(Path(folder), choice.backend.threads)
        model = Choice(choice.bundle, timed, choice.precision, 0).load()
        asked = requests(model, Workload(workload.images, workload.prompt_tokens, _NEW_TOKENS, 1))
        once(model, asked, 1)  # warm up
        once(model, asked, _NEW_TOKENS)
        events = {component: session.events() for component, session in timed.sessions.items()}
    found = []
    for component, own in events.items():
        parts = parts_of(choice.bundle.path / choice.bundle.graph(component, choice.precision).graph.path)
        for stage, runs in _stages(component, own).items():
            found += _summed(stage, runs, parts)
    return tuple(sorted(found, key=lambda one: -one.milliseconds))


def _engine_layers(choice: Choice, workload: Workload) -> tuple[Layer, ...]:
    """TensorRT's own timing of the layers that it has made of the nodes."""
    model = choice.load()
    asked = requests(model, Workload(workload.images, workload.prompt_tokens, _NEW_TOKENS, 1))
    once(model, asked, 2)  # warm up
    seen: dict[str, dict[str, list[float]]] = {}

    def report(component: Component, phase: str, layer: str, milliseconds: float) -> None:
        stage = component.value
        if component is Component.DECODER:
            stage = "decode_step" if phase == "decode" else "prefill"
        seen.setdefault(stage, {}).setdefault(layer, []).append(milliseconds)

    for component, session in model.engine.sessions.items():
        assert isinstance(session, EngineSession)
        session.time_layers(partial(report, component))
    once(model, asked, _NEW_TOKENS)
    found = []
    for stage, own in seen.items():
        component = Component.DECODER if stage in ("prefill", "decode_step") else Component(stage)
        parts = parts_of(choice.bundle.path / choice.bundle.graph(component, choice.precision).graph.path)
        runs = {layer: 1 if stage == "prefill" else len(times) for layer, times in own.items()}  # chunks are one
        found += _together(stage, [(layer, layer, sum(own[layer]) / runs[layer]) for layer in own], parts)
    return tuple(sorted(found, key=lambda one: -one.milliseconds))


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
    """Node events of every run, by stage. The first half of all runs that came twice was to warm up.

    The decoder's last runs are the decode steps, the first of which is not counted; a long prompt is prefilled in
    several runs, which are one of the stage.
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
        return {component.value: runs[len(runs) // 2 :]}
    prefills, steps = runs[: 1 - _NEW_TOKENS], runs[1 - _NEW_TOKENS :]
    return {"prefill": [list(chain(*prefills[len(prefills) // 2 :]))], "decode_step": steps[1:]}


def _summed(stage: str, runs: list[list[Mapping[str, Any]]], parts: Mapping[str, tuple[str, str]]) -> list[Layer]:
    timed = [
        (str(event["name"]).removesuffix("_kernel_time"), str(event["args"]["op_name"]), float(event["dur"]) / 1000)
        for run in runs
        for event in run
    ]
    return _together(stage, [(name, operator, ms / len(runs)) for name, operator, ms in timed], parts)


def _together(stage: str, timed: Iterable[tuple[str, str, float]], parts: Mapping[str, tuple[str, str]]) -> list[Layer]:
    """Nodes or layers, each with what it does and its milliseconds, summed up by the model's parts."""
    totals: dict[tuple[str, str], dict[str, float]] = {}
    for name, operator, milliseconds in timed:
        operators = totals.setdefault(_part_of(name, parts), {})
        operators[operator] = operators.get(operator, 0.0) + milliseconds
    whole = sum(sum(operators.values()) for operators in totals.values())
    found = []
    for (layer, part), operators in totals.items():
        own, most = sum(operators.values()), max(operators, key=operators.__getitem__)
        found.append(Layer(stage, layer, part, most, own, own / whole if whole else 0.0))
    return found


def parts_of(graph: Path) -> dict[str, tuple[str, str]]:
    """Node and value names of a graph → layer and part of the model."""
    model = onnx.load(graph, load_external_data=False)
    found: dict[str, tuple[str, str]] = {}
    for node in model.graph.node:
        scopes = next((one.value for one in node.metadata_props if one.key == _SCOPES), "['']")
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
