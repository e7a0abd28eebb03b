"""Where an ONNX file says its weights lie, and that they are there.

`onnx.checker` accepts data that is short or points past its end, and ONNX Runtime reads what a link leads to; so the
references of every graph are compared with the files before they are published.
"""

from itertools import pairwise
from pathlib import Path, PurePosixPath

import onnx_ir as ir

from vlm_trt.bundle.errors import BundleError


def check_references(graph: Path) -> dict[str, int]:
    """The files the graph's weights lie in, by name, and the bytes of each that are referred to.

    Args:
        graph: an ONNX file; its weight files lie in the same folder or below.
    Raises:
        BundleError: the file is no ONNX graph, or a reference leaves the folder, follows a link, names a file that is
            missing, does not have the length of its tensor, ends past the file, or overlaps another.
    """
    try:
        model = ir.load(graph)
    except Exception as error:  # the protobuf reader has an exception of its own for every kind of damage
        raise BundleError(f"{graph} is no ONNX file ({type(error).__name__}); export the checkpoint again") from error
    if not model.graph.outputs:  # what an empty or cut-off file reads as
        raise BundleError(f"{graph} is no ONNX file (it computes nothing); export the checkpoint again")
    places: dict[str, list[tuple[int, int, str]]] = {}
    for tensor in _external_tensors(model):
        start = tensor.offset or 0
        length = tensor.nbytes if tensor.length is None else tensor.length
        _require(tensor, start, length, graph)
        places.setdefault(str(tensor.location), []).append((start, start + length, str(tensor.name)))
    for file, spans in places.items():
        _require_apart(spans, file, graph)
    return {file: sum(stop - start for start, stop, _ in spans) for file, spans in places.items()}


def require_references(graph: Path, weights: Path | None) -> None:
    """
    Args:
        graph: an ONNX file.
        weights: the one file that its weights may lie in, if any; only that one is vouched for by a hash.
    Raises:
        BundleError: as `check_references`, or the graph takes data from another file.
    """
    for file in check_references(graph):
        if weights is None or graph.parent / file != weights:
            raise BundleError(
                f"{graph} takes weights from {file}, which the manifest does not vouch for; export the checkpoint again"
            )


def _external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """Every tensor outside the file: initializers and attributes, of nested graphs and functions too."""
    found: list[object] = []
    for graph in model.graphs():
        found += [value.const_value for value in graph.initializers.values()]
    owners: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for owner in owners:
        for node in owner.all_nodes():
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type is ir.AttributeType.TENSOR:
                    found.append(attribute.value)
                elif attribute.type is ir.AttributeType.TENSORS:
                    found.extend(attribute.value)
    return [tensor for tensor in found if isinstance(tensor, ir.ExternalTensor)]


def _require(tensor: ir.ExternalTensor, start: int, length: int, graph: Path) -> None:
    """One reference: a plain file of the folder that holds all of the tensor."""
    location = str(tensor.location)
    what = f"{graph}: the data of {tensor.name}"
    parts = PurePosixPath(location).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in location or "\0" in location:
        raise BundleError(f"{what} lies at {location!r}, outside the graph's folder; do not use this graph")
    path = graph.parent / location
    if not path.is_file():
        raise BundleError(f"{what} lies in {path}, which is missing; export the checkpoint again")
    if not path.resolve().is_relative_to(graph.parent.resolve()) or path.is_symlink() or path.stat().st_nlink > 1:
        raise BundleError(f"{what} lies in {path}, which is a link; copy the file in its place or export again")
    if length != tensor.nbytes:
        raise BundleError(f"{what} has {length} bytes, its type and shape need {tensor.nbytes}; export again")
    size = path.stat().st_size
    if start < 0 or start + length > size:
        raise BundleError(f"{what} is at bytes {start}…{start + length} of {path}, which has {size}; export again")


def _require_apart(spans: list[tuple[int, int, str]], file: str, graph: Path) -> None:
    """Two tensors may share all of their bytes, as tied weights do, but not a part of them."""
    for (start, stop, name), (next_start, next_stop, next_name) in pairwise(sorted(spans)):
        if next_start < stop and (start, stop) != (next_start, next_stop):
            raise BundleError(f"{graph}: {name} and {next_name} overlap in {file}; export the checkpoint again")
