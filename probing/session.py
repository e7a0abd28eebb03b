"""ONNX Runtime on the CPU with graphs that were changed in memory before they are loaded."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.precision import Precision
from vlm_trt.probing.widen import HALVES, round_as_stored
from vlm_trt.runtime.backend import Binding, host_view, to_float32
from vlm_trt.runtime.ort import CpuBackend, OrtSession
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime

Floats = NDArray[np.float32]

# Which inner tensors of a graph are shown.
Choose = Callable[[Component, ir.Model], Sequence[str]]
# Called with component, name and value of each in fp32, after every run.
Look = Callable[[Component, str, Floats], None]


def as_stored(precision: Precision) -> CpuBackend:
    """The CPU, computing what a GPU computes from graphs of that precision."""
    return CpuBackend() if precision.dtype == "float32" else Rounding()


class Rounding(CpuBackend):
    """The CPU, rounding every value of half precision as a GPU does; bf16 graphs run, too."""

    precisions = (*CpuBackend.precisions, Precision.BF16, Precision.PUBLISHED_INT4_BF16)

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        model = ir.load(file)
        round_as_stored(model)
        return OrtSession(file, self.options(file), model=as_bytes(model))


class Probing(CpuBackend):
    """The CPU, with sessions that show inner tensors, rounded as a GPU rounds them."""

    precisions = Rounding.precisions

    def __init__(self, choose: Choose, look: Look) -> None:
        super().__init__()
        self._choose, self._look = choose, look

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        model, component = ir.load(file), Component(file.stem)
        names = self._choose(component, model)
        round_as_stored(model)
        options = self.options(file)
        options.enable_cpu_mem_arena = False  # which would keep the memory of the largest run
        return ProbedSession(file, options, model, names, lambda name, value: self._look(component, name, value))


class ProbedSession(OrtSession):
    """A graph whose inner tensors are outputs too."""

    def __init__(
        self,
        file: Path,
        options: onnxruntime.SessionOptions,
        model: ir.Model,
        names: Sequence[str],
        look: Callable[[str, Floats], None],
    ) -> None:
        """
        Args:
            file: where the graph lies, for its weights.
            options: of the session.
            model: the graph; changed.
            names: of the floating-point tensors to show: inputs, outputs or inner ones.
            look: called with the name and the value of each after every run.
        """
        outside = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
        self._outer = [name for name in names if name in outside]
        values = {value.name: value for node in model.graph for value in node.outputs}
        self._shown = {_in_fp32(model, values[name]): name for name in names if name not in outside}
        super().__init__(file, options, model=as_bytes(model))
        self._see = look

    def run(
        self,
        inputs: Mapping[str, Binding],
        outputs: Mapping[str, Binding],
        *,
        repeats: bool = False,
        options: object = None,
    ) -> None:
        for shown in self._shown:  # first of all outputs, so that they are the first ones given back; shapes vary
            self._io.bind_output(shown, "cpu")
        super().run(inputs, outputs)
        for name, value in zip(self._shown.values(), self._io.get_outputs(), strict=False):
            self._see(name, value.numpy())
        for name in self._outer:
            bound = inputs[name] if name in inputs else outputs[name]
            self._see(name, to_float32(host_view(bound), bound.dtype))


def _in_fp32(model: ir.Model, value: ir.Value) -> str:
    """The name of a new output with that value in fp32."""
    assert value.name
    if value.dtype not in HALVES:
        model.graph.outputs.append(value)
        return value.name
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"{value.name}_shown")
    cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}.shown", ir.DataType.FLOAT
    producer = value.producer()
    assert producer is not None
    model.graph.insert_after(producer, cast)
    model.graph.outputs.append(cast.outputs[0])
    return f"{value.name}.shown"


def as_bytes(model: ir.Model) -> bytes:
    """The graph as a file holds it, its weights still outside."""
    return bytes(ir.serde.serialize_model(model).SerializeToString())
