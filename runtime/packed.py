"""Graphs packed for this machine: as ONNX Runtime optimized them, weights in its kernels' layout, mapped from a file.

A packed graph loads in a fraction of the time, and processes share its memory. It holds for the version of
ONNX Runtime that made it and for the instructions of the CPU; elsewhere the graph itself is loaded.
"""

from pathlib import Path

from vlm_trt.bundle.entries import EngineEntry, GraphEntry, PackedEntry
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.ort import CpuBackend, OrtSession
from vlm_trt.runtime.processor import processor
from vlm_trt.runtime.quiet_onnxruntime import onnxruntime


class PackedCpuBackend(CpuBackend):
    """The CPU, with the packed form of every graph of which the bundle has one that fits."""

    def packed(self, bundle: Bundle, graph: GraphEntry) -> PackedEntry | None:
        if self._prepack is False:
            return None
        here = graph.identity, onnxruntime.__version__, processor()
        return next((one for one in bundle.manifest.packed if (one.made_of, one.runtime, one.processor) == here), None)

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        if not _is_packed(file):
            return super().open(file, engine)
        options = self.options(file)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it has been optimized
        return OrtSession(file, options)

    def prepacks(self, graph: Path) -> bool:
        return _is_packed(graph) or super().prepacks(graph)


def _is_packed(file: Path) -> bool:
    """Whether it lies where `packed_paths` says."""
    return file.parent.parent.name == "packed"
