"""Quantized graphs against the float ones they were made from: made again as they were made, and compared bit for bit.

Answers judge what a quantization costs; this proves that the integers, scales and nodes are those of that quantization.
"""

from collections.abc import Callable

from vlm_trt.bundle.component import PIPELINE
from vlm_trt.bundle.digests import sha256_of
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.errors import BundleError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import MakeBar, no_bar
from vlm_trt.bundle.store import Bundle, how_to_make
from vlm_trt.calibration.cache import find_cached
from vlm_trt.calibration.linears import find_groups, find_linears, untied
from vlm_trt.calibration.plan_file import floats_of, loads
from vlm_trt.calibration.rewrite import rewrite
from vlm_trt.calibration.weight_file import ComparedWeights
from vlm_trt.probing.audit import Audit, some
from vlm_trt.probing.graph_difference import difference, read_graph


def audit(bundle: Bundle, precision: Precision, byte_bar: MakeBar = no_bar) -> Audit:
    """What was compared of a bundle's quantized graphs, and what is not as their quantization makes it.

    Args:
        bundle: with the float graphs, which have an audit of their own.
        precision: of the quantized ones.
        byte_bar: a progress bar for a label and a number of bytes.
    Raises:
        BundleError: a graph is missing or no ONNX file, or the record of what made it is no such thing.
    """
    found = Audit()
    components = bundle.manifest.model.components
    pairs = [(bundle.graph(one, precision), bundle.graph(one, precision.floating)) for one in components]
    bundle.check([floats for _, floats in pairs])
    with byte_bar("audit", sum(entry.weight_bytes for entry, _ in pairs)) as bar:
        on_bytes = (lambda _: None) if bar is None else bar.update
        for entry, floats in pairs:
            found = found.joined(_audited(bundle, entry, floats, on_bytes))
    return found


def _audited(bundle: Bundle, entry: GraphEntry, floats: GraphEntry, on_bytes: Callable[[int], None]) -> Audit:
    again = f"{how_to_make(entry.precision, bundle.path)} --force"
    if entry.component not in PIPELINE or entry.weights is None:
        return _copied(bundle, entry, floats, again)
    if entry.calibration is None:
        raise BundleError(f"{bundle.path / entry.graph.path} lacks the record of what made it; {again}")
    where = bundle.path / entry.calibration.path
    text = where.read_text(encoding="utf-8", errors="replace")
    if floats_of(text, str(where)) != floats.identity:
        raise BundleError(
            f"{bundle.path / entry.graph.path} was made from another {floats.precision} graph than the one there; "
            f"{again}"
        )
    path = bundle.path / floats.graph.path
    expected, found = untied(read_graph(path)), read_graph(bundle.path / entry.graph.path)
    linears = find_linears(expected, entry.component)
    plan = loads(text, str(where), linears, find_groups(expected, linears), find_cached(expected))
    weights = bundle.path / entry.weights.path
    with ComparedWeights(weights, on_bytes) as file:
        rewrite(expected, plan, file)
    compared = difference(expected, found)
    count = len(found.graph.initializers)
    remedy = f"of {path}; {again}"
    failures = [
        f"audit: {name or 'what lies between the tensors'} in {weights} is not what the quantization makes: {bytes_:,} "
        f"bytes differ, {remedy}"
        for name, bytes_ in file.differing.items()
    ]
    nodes = [f"audit: {one} ({bundle.path / entry.graph.path}), {remedy}" for one in compared.sentences]
    return Audit(
        weights=count,
        bytes=entry.weight_bytes,
        constants=compared.constants,
        failures=(*some(failures, "tensors"), *some(nodes, "nodes")),
    )


def _copied(bundle: Bundle, entry: GraphEntry, floats: GraphEntry, again: str) -> Audit:
    """A graph that no quantization changes is the float one, byte for byte, and so are its weights."""
    failures = tuple(
        f"audit: {bundle.path / own.path} is not {bundle.path / other.path}, which no quantization changes; {again}"
        for own, other in zip(entry.files, floats.files, strict=True)
        if sha256_of(bundle.path / own.path) != sha256_of(bundle.path / other.path)
    )
    return Audit(bytes=entry.weight_bytes, failures=failures)
