"""What is known to go wrong between a graph and its engine, looked for before the build."""

from collections import Counter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.errors import UnsupportedError
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import signature
from vlm_trt.engines.finding import Finding
from vlm_trt.engines.lint_rules import RULES, Graph


def lint_graph(
    graph: Path,
    component: Component,
    precision: Precision,
    model: ModelConfig,
    limits: Limits,
    target: str,
    backend: str = "tensorrt-rtx",
) -> tuple[Finding, ...]:
    """Every known trap in a graph, the errors first.

    Args:
        graph: the ONNX file; its weights are not read.
        component: which graph it is meant to be; with precision, model and limits the contract it is held to.
        precision: of its weights.
        model: sizes of the model.
        limits: of the bundle.
        target: compute capability that it is to be built for, such as "sm89".
        backend: "tensorrt" or "tensorrt-rtx".
    Raises:
        UnsupportedError: it is no ONNX file.
    """
    try:
        proto = onnx.load(graph, load_external_data=False)
    except DecodeError as error:
        raise UnsupportedError(
            f"{graph} does not parse: it is no ONNX file ({error}); export the checkpoint again"
        ) from None
    seen = Graph(
        proto=proto.graph,
        contract=signature(component, model, limits, precision),
        limits=limits,
        capability=int(target.removeprefix("sm")),
        backend=backend,
        producers={name: node for node in proto.graph.node for name in node.output},
        uses=Counter(name for node in proto.graph.node for name in node.input),
        initializers={tensor.name: tensor for tensor in proto.graph.initializer},
    )
    found = [finding for rule in RULES for finding in rule(seen)]
    return tuple(sorted(found, key=lambda finding: finding.severity))
