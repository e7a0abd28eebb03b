"""Bundles changed by somebody who wants them to pass: the manifest vouches for every changed byte."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.entries import FileEntry, GraphEntry
from vlm_trt.bundle.manifest import Manifest, loads
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import MANIFEST, file_entry

Change = Callable[[NDArray[Any]], None]


def manifest_of(path: Path) -> Manifest:
    """The manifest, whatever the files are by now."""
    return loads((path / MANIFEST).read_text(), MANIFEST)


def entry_of(path: Path, component: Component, precision: Precision) -> GraphEntry:
    entry = manifest_of(path).graph(component, precision)
    assert entry is not None
    return entry


def vouch(path: Path) -> None:
    """The sizes and hashes of all graphs as they are now."""
    manifest = manifest_of(path)

    def now(one: FileEntry) -> FileEntry:
        return file_entry(path, one.path)

    graphs = tuple(
        replace(
            one,
            graph=now(one.graph),
            weights=one.weights and now(one.weights),
            calibration=one.calibration and now(one.calibration),
        )
        for one in manifest.graphs
    )
    (path / MANIFEST).write_text(replace(manifest, graphs=graphs).dumps())


def change_weight(path: Path, component: Component, precision: Precision, name: str, change: Change) -> None:
    """Changes a weight where it lies, as an array of its type and shape; 4-bit ones as bytes."""
    entry = entry_of(path, component, precision)
    tensor = ir.load(path / entry.graph.path).graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor) and tensor.length is not None
    packed = tensor.dtype is ir.DataType.INT4
    kind, shape = (np.uint8, (tensor.length,)) if packed else (tensor.dtype.numpy(), tensor.shape.numpy())
    assert entry.weights is not None
    file = path / entry.weights.path
    data = bytearray(file.read_bytes())
    at = tensor.offset or 0
    values = np.frombuffer(data, np.uint8)[at : at + tensor.length].view(kind).reshape(shape)
    change(values)
    file.write_bytes(bytes(data))
    vouch(path)


def change_graph(
    path: Path, component: Component, precision: Precision, change: Callable[[onnx.ModelProto], None]
) -> None:
    file = path / entry_of(path, component, precision).graph.path
    model = onnx.load(file, load_external_data=False)
    change(model)
    file.write_bytes(model.SerializeToString())
    vouch(path)
