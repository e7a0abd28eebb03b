"""ONNX Runtime on the CPU with graphs that do not fit into memory: all runs go through a part before the next part."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.host import give_back_memory
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import precision_of
from vlm_trt.probing.parts import Part, cut
from vlm_trt.probing.widen import round_as_stored
from vlm_trt.runtime.backend import NUMPY_DTYPES, Array, Binding, bind_host, host_view
from vlm_trt.runtime.grouped_attention import group_attention
from vlm_trt.runtime.ort import ELEMENT_TYPES, CpuBackend, OrtSession, explained
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime

_CACHE = ("past_key_values.", "present.")


class InParts(CpuBackend):
    """The CPU, with sessions that note what they are asked to run and do it together, when told to."""

    def __init__(self, rounded: bool, progress: Callable[[str], None], *, exact: bool = False) -> None:
        """
        Args:
            rounded: every value of half precision is rounded as a GPU does; bf16 graphs need it.
            progress: told which part is computed.
            exact: as of `CpuBackend`.
        """
        super().__init__(exact=exact)
        self._rounded, self._progress = rounded, progress
        if rounded:
            self.precisions = (*CpuBackend.precisions, Precision.BF16, Precision.PUBLISHED_INT4_BF16)

    def prepacks(self, graph: Path) -> bool:
        """Quantized weights alone, whose kernels need it: packed floats would be in memory twice."""
        precision = precision_of(graph)
        return precision is not None and precision.kind is not None

    def open(self, file: Path, engine: EngineEntry | None = None) -> "DeferredSession | OrtSession":  # type: ignore[override]
        if file.stem == Component.SAMPLER:  # which has no weights, and is run when it is asked
            return super().open(file)
        model = ir.load(file)
        if self._rounded:
            round_as_stored(model)
        elif self.groups(file):  # as they run here
            group_attention(model)
        return DeferredSession(file, cut(model), self.options, self._progress)


@dataclass
class Call:
    """One run that was asked for, and what of it is there already."""

    inputs: dict[str, Array]  # copies
    caches: dict[str, Binding]  # past and present, at the addresses of the caller's cache
    outputs: dict[str, Binding]
    handed_on: dict[str, onnxruntime.OrtValue]


class DeferredSession:
    """A graph whose runs happen at `finish`."""

    def __init__(
        self,
        file: Path,
        parts: list[Part],
        options: Callable[[Path], onnxruntime.SessionOptions],
        progress: Callable[[str], None],
    ) -> None:
        self._file, self.parts, self._options, self._progress = file, parts, options, progress
        self._calls: list[Call] = []

    def run(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding], *, repeats: bool = False) -> None:
        """Notes a run: its inputs as they are now, its outputs' memory, which has to stay."""
        both = {**inputs, **outputs}
        self._calls.append(
            Call(
                inputs={name: host_view(one).copy() for name, one in inputs.items() if not name.startswith(_CACHE)},
                caches={name: one for name, one in both.items() if name.startswith(_CACHE)},
                outputs={name: one for name, one in outputs.items() if not name.startswith(_CACHE)},
                handed_on={},
            )
        )

    def finish(self, done: Callable[[Mapping[str, Binding]], None] = lambda _: None) -> None:
        """Runs everything noted, in order within each part.

        Args:
            done: called with the outputs' memory after each run is complete; the next one may use the same.
        Raises:
            ResourceError: not enough memory.
        """
        for at, part in enumerate(self.parts):
            self._progress(f"{self._file.stem}: part {at + 1} of {len(self.parts)}")
            later = {name for other in self.parts[at + 1 :] for name in other.inputs}
            with _Caches(part, self._calls) as caches:
                session = self._load(part)
                for call in self._calls:
                    self._run(session, part, call, caches, later)
                    if at == len(self.parts) - 1:
                        done(call.outputs)
                del session
            give_back_memory()
        self._calls.clear()

    def _load(self, part: Part) -> onnxruntime.InferenceSession:
        options = self._options(self._file)
        folder = str(self._file.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        try:
            return onnxruntime.InferenceSession(part.model, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise explained(error, f"loading a part of {self._file}") from error

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        part: Part,
        call: Call,
        caches: "_Caches",
        later: set[str],
    ) -> None:
        io = session.io_binding()
        for name in part.inputs:
            if name in call.handed_on:
                io.bind_ortvalue_input(name, call.handed_on[name])
            else:
                bound = caches.binding(name, call) if name in call.caches else _bound(call.inputs[name], name)
                io.bind_input(name, "cpu", 0, ELEMENT_TYPES[bound.dtype], bound.shape, bound.address)
        for name in part.outputs:
            if name in call.caches or name in call.outputs:
                bound = caches.binding(name, call) if name in call.caches else call.outputs[name]
                io.bind_output(name, "cpu", 0, ELEMENT_TYPES[bound.dtype], bound.shape, bound.address)
            else:
                io.bind_output(name, "cpu")
        try:
            session.run_with_iobinding(io)
        except Exception as error:
            raise explained(error, f"running a part of {self._file.name}") from error
        made = dict(zip(part.outputs, io.get_outputs(), strict=True))
        kept = {**call.handed_on, **{name: made[name] for name in part.outputs if name not in call.outputs}}
        call.handed_on = {name: value for name, value in kept.items() if name in later}


def _bound(array: Array, name: str) -> Binding:
    dtypes = {np.dtype(numpy): ours for ours, numpy in NUMPY_DTYPES.items()}
    return bind_host(array, dtypes[array.dtype])


class _Caches:
    """Memory for the cache rows of the layers of one part, in place of those of the whole model."""

    def __init__(self, part: Part, calls: list[Call]) -> None:
        own = {name for name in (*part.inputs, *part.outputs) if name.startswith(_CACHE)}
        used = [binding for call in calls for name, binding in call.caches.items() if name in own]
        self._spans: dict[int, tuple[int, NDArray[np.uint8]]] = {}
        for start, stop in _merged(sorted({(one.address, one.address + one.size_bytes) for one in used})):
            self._spans[start] = stop, np.zeros(stop - start, dtype=np.uint8)

    def __enter__(self) -> "_Caches":
        return self

    def __exit__(self, *_: object) -> None:
        self._spans.clear()

    def binding(self, name: str, call: Call) -> Binding:
        """Where the rows lie that the caller has bound."""
        asked = call.caches[name]
        for start, (stop, memory) in self._spans.items():
            if start <= asked.address < stop:
                return Binding(memory.ctypes.data + asked.address - start, asked.shape, asked.dtype, on_host=True)
        raise AssertionError(name)


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans of addresses, those that overlap or touch as one."""
    merged: list[tuple[int, int]] = []
    for start, stop in spans:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], stop)
        else:
            merged.append((start, stop))
    return merged
