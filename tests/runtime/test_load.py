"""Graphs are loaded beside each other, and one that fails ends the load."""

from collections.abc import Callable
from pathlib import Path
from threading import get_ident

import pytest

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import EngineEntry
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend, OrtSession


class Watched(CpuBackend):
    """Notes what is loaded, and in which thread; there may be no memory for one graph."""

    def __init__(self, without: Component | None = None) -> None:
        super().__init__(threads=1)
        self.loaded: list[tuple[str, int]] = []
        self._without = without

    def open(self, file: Path, engine: EngineEntry | None = None) -> OrtSession:
        self.loaded.append((file.stem, get_ident()))
        if file.stem == self._without:
            raise ResourceError(f"not enough memory for loading {file.name}")
        return super().open(file, engine)


def test_the_largest_graph_is_begun_first(exported: Callable[..., Path]) -> None:
    bundle, backend = Bundle.open(exported("ntk-256")), Watched()
    open_engine(bundle, Precision.FP32, backend)
    sizes = {one.component: sum(file.size for file in one.files) for one in bundle.manifest.graphs}
    assert {name for name, _ in backend.loaded} == set(sizes)
    assert backend.loaded[0][0] == max(sizes, key=lambda one: sizes[one])
    assert get_ident() not in {thread for _, thread in backend.loaded}


@pytest.mark.parametrize("component", [Component.DECODER, Component.SAMPLER])
def test_a_graph_that_cannot_be_loaded_ends_the_load(component: Component, exported: Callable[..., Path]) -> None:
    with pytest.raises(ResourceError, match=f"not enough memory for loading {component}.onnx"):
        open_engine(Bundle.open(exported("ntk-256")), Precision.FP32, Watched(component))


def test_where_threads_matter_the_caller_loads(exported: Callable[..., Path]) -> None:
    backend = Watched()
    backend.loads_beside = 1
    open_engine(Bundle.open(exported("ntk-256")), Precision.FP32, backend)
    assert {thread for _, thread in backend.loaded} == {get_ident()}
