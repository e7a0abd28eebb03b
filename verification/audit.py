"""Float graphs against the checkpoint, number by number: samples prove a graph's structure, this proves what it holds.

Every byte of a weight file is compared with what the checkpoint's tensors become. Every node, attribute and constant is
compared with the graph that this version traces from the checkpoint's own config. Quantized graphs are compared with
the float ones in `calibration/audit.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir

from vlm_trt.bundle.config import ModelConfig, require_limits
from vlm_trt.bundle.entries import GraphEntry
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.progress import MakeBar, no_bar
from vlm_trt.bundle.store import Bundle, how_to_make
from vlm_trt.exporter.checkpoint import Checkpoint
from vlm_trt.exporter.graph_files import GraphPlan, graph_files, graph_plan
from vlm_trt.exporter.packed_weights import GraphWeights, graph_weights
from vlm_trt.exporter.references import require_references
from vlm_trt.families.family import family_of
from vlm_trt.families.weights import Weight
from vlm_trt.probing.audit import Audit, some
from vlm_trt.probing.graph_difference import difference, read_graph
from vlm_trt.probing.widen import widen, widened
from vlm_trt.verification.weight_audit import WeightFile, audit_weights


@dataclass(frozen=True)
class _Part:
    """One graph of the bundle, and what it should be."""

    entry: GraphEntry
    weights: tuple[Weight, ...]
    plan: GraphPlan
    folder: Path  # of the bundle

    @property
    def graph(self) -> Path:
        return self.folder / self.entry.graph.path

    @property
    def file(self) -> WeightFile | None:
        """None of a graph without weights."""
        if self.entry.weights is None:
            return None
        return WeightFile(self.folder / self.entry.weights.path, self.weights, self.plan.places)


def audit(bundle: Bundle, precision: Precision, checkpoint: Checkpoint, byte_bar: MakeBar = no_bar) -> Audit:
    """What was compared of a bundle's float graphs, and what is not as an export of the checkpoint makes it.

    Args:
        bundle: its limits are taken as they are; its model is not: the checkpoint's config is read again.
        precision: of the graphs; not a quantized one.
        checkpoint: what they were exported from.
        byte_bar: a progress bar for a label and a number of bytes.
    Raises:
        BundleError: a graph is no ONNX file, or takes its weights from elsewhere than its own file.
        CheckpointError, UnsupportedError: the checkpoint is not what its config says, or holds NaN.
        UsageError: the bundle's limits are beyond the model.
        ResourceError: no memory to trace the graphs.
    """
    kind = family_of(checkpoint.folder)
    model = kind.read_config(checkpoint.folder)
    require_limits(model, bundle.manifest.limits)
    weight_map = kind.weight_map(model)
    checkpoint.check(weight_map)
    parts = [
        _part(bundle, entry, graph_weights(weight_map.weights, entry.component, checkpoint, precision))
        for entry in bundle.manifest.graphs
        if entry.precision is precision
    ]
    for part in parts:
        require_references(part.graph, None if part.file is None else part.file.path)
    found = Audit()
    total = sum(place.length for part in parts for place in part.plan.places)
    with graph_files([part.plan for part in parts], model, bundle.manifest.limits, total) as graph_file:
        with byte_bar("audit", total) as bar:
            on_bytes = (lambda _: None) if bar is None else bar.update
            for part in parts:
                if part.file is not None:
                    found = found.joined(_weights(part, part.file, model, checkpoint, on_bytes))
        for part in parts:
            found = found.joined(_structure(part, graph_file(part.plan), bundle))
    return found


def _part(bundle: Bundle, entry: GraphEntry, own: GraphWeights) -> _Part:
    return _Part(entry, own.weights, graph_plan(entry.component, entry.precision, own), bundle.path)


def _weights(
    part: _Part, file: WeightFile, model: ModelConfig, checkpoint: Checkpoint, on_bytes: Callable[[int], None]
) -> Audit:
    found = audit_weights(file, model, checkpoint, on_bytes)
    remedy = f"({file.path}, of {checkpoint.folder}); {how_to_make(part.entry.precision, part.folder)} --force"
    failures = [f"audit: {one.failure} {remedy}" for one in found if one.failure is not None]
    return Audit(
        weights=len(part.weights),
        bytes=part.entry.weight_bytes,
        failures=some(failures, f"weights of the {part.entry.component}"),
        notes=tuple(f"audit: {one.note}" for one in found if one.note is not None),
    )


def _structure(part: _Part, traced: bytes, bundle: Bundle) -> Audit:
    """Nodes, attributes and constants, with the same nodes in fp32 that `diagnose --mend` put there."""
    found, expected = read_graph(part.graph), ir.from_proto(onnx.ModelProto.FromString(traced))
    nodes, unrounded = widened(found)
    widen(expected, nodes, unrounded)
    compared = difference(expected, found)
    remedy = f"({part.graph}); {how_to_make(part.entry.precision, part.folder)} --force"
    failures = some([f"audit: {one} {remedy}" for one in compared.sentences], f"nodes of the {part.entry.component}")
    made_with = f"vlm-trt {bundle.manifest.version} and torch {found.producer_version or '(unknown)'}"
    here = f"vlm-trt {version('vlm-trt')} and torch {expected.producer_version}"
    if failures and made_with != here:
        failures = (
            f"audit: {part.graph} was exported by {made_with}, and {here} trace another graph, so it cannot be "
            f"audited: {compared.sentences[0]}; {how_to_make(part.entry.precision, part.folder)} --force, or verify "
            "with those versions",
        )
    notes = (f"audit: {len(nodes)} nodes of the {part.entry.component} compute in fp32",) if nodes else ()
    return Audit(constants=compared.constants, failures=failures, notes=notes)
