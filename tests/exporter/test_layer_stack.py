"""A graph whose layers were copied from two of a kind is, node for node, the one that tracing every layer makes."""

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import nn

from tests.golden_families import max_seq_tokens
from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.parts import SandwichBlock, WindowTower
from vlm_trt.bundle.precision import Precision
from vlm_trt.exporter.layer_stack import shorten
from vlm_trt.exporter.modules.build import build_module
from vlm_trt.exporter.trace import trace, traced
from vlm_trt.families.family import family_of

# A family for each kind of tower and block; how many layers, and which of them are of another kind.
TOWERS = {
    "llava15": (3, ()),
    "smolvlm2": (3, ()),
    "qwen2_vl": (3, ()),
    "qwen2_5_vl": (6, (1, 3, 5)),
    "moondream2": (3, ()),
}
BLOCKS = {"qwen2_vl": (3, ()), "moondream2": (3, ()), "paligemma2": (6, (1, 3, 5))}
CASES = [(Component.VISION_ENCODER, name) for name in TOWERS] + [(Component.DECODER, name) for name in BLOCKS]


def deeper(component: Component, model: ModelConfig, layers: int, others: tuple[int, ...]) -> ModelConfig:
    """The model with so many layers, those of another kind at these places."""
    if component is Component.DECODER:
        block = model.decoder.block
        block = replace(block, window_layers=others) if isinstance(block, SandwichBlock) else block
        return replace(model, decoder=replace(model.decoder, layers=layers, block=block))
    tower = replace(model.vision, layers=layers)
    return replace(model, vision=replace(tower, full_layers=others) if isinstance(tower, WindowTower) else tower)


def described(graph: ir.Model) -> dict[str, list[str]]:
    """Everything about a graph but the names of what nodes make, of constants, and the order of independent nodes.

    A value is what made it, and of what: a digest of operator, attributes, types and all that it depends on. Where
    several inputs have an axis, tracing reads its length of any of them.
    """
    known: dict[ir.Value, str] = {value: f"{value.name} {value.shape}" for value in graph.graph.inputs}
    for value in graph.graph.initializers.values():
        constant = value.const_value
        known[value] = f"{value.name} {value.shape}" if constant is None else str(constant.numpy().tolist())
    made = []
    for node in graph.graph:
        types = [(str(value.dtype), len(value.shape or ())) for value in node.outputs]
        what = f"{node.op_type} {types} {sorted(node.metadata_props)} {_of(node, known)}"
        known |= {value: f"{sha256(what.encode()).hexdigest()} {at}" for at, value in enumerate(node.outputs)}
        made.append(what)
    return {
        "inputs": [known[value] for value in graph.graph.inputs],
        "weights": sorted(str(value.name) for value in graph.graph.initializers.values() if value.const_value is None),
        "nodes": sorted(made),
        "outputs": [f"{value.name} {value.shape} {known[value]}" for value in graph.graph.outputs],
    }


def _of(node: ir.Node, known: dict[ir.Value, str]) -> object:
    """What a node computes with."""
    source = node.inputs[0]
    if node.op_type == "Shape" and source is not None and source.is_graph_input():
        assert source.shape is not None
        return source.shape[node.attributes["start"].as_int() : node.attributes["end"].as_int()]
    attributes = sorted((key, str(one.value)) for key, one in node.attributes.items())
    return attributes, [None if value is None else known[value] for value in node.inputs]


# In fp32 nothing is left behind the layers of a tower that ends with them.
PRECISIONS = {"qwen2_vl": Precision.FP32}


@pytest.mark.parametrize(("component", "family"), CASES)
def test_copied_layers_are_traced_ones(
    component: Component, family: str, family_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint = family_checkpoint(family)
    layers, others = (BLOCKS if component is Component.DECODER else TOWERS)[family]
    model = deeper(component, family_of(checkpoint).read_config(checkpoint), layers, others)
    limits, precision = Limits(max_seq_tokens(family), 3, 2), PRECISIONS.get(family, Precision.FP16)
    with torch.device("meta"):
        module = build_module(component, model, precision)
    whole = traced(component, module, model, limits, precision)
    made = trace(component, model, limits, precision)
    assert described(made) == described(whole)
    names = [value.name for node in made.graph for value in node.outputs]
    assert len(set(names)) == len(names)


class Layer(nn.Module):
    """One that differs in a parameter's width or in what it was made with."""

    def __init__(self, width: int, near: bool) -> None:
        super().__init__()
        self.inner, self.near = nn.Linear(width, width), near


class Stack(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


@pytest.mark.parametrize(
    ("layers", "looks_like"),
    [
        ("aaaa", (0, 1, 1, 1)),
        ("a", (0,)),
        ("abababc", (0, 1, 2, 3, 2, 3, 4)),
        ("aabaabb", (0, 1, 2, 1, 1, 3, 3)),
    ],
)
def test_two_of_a_kind_are_left(layers: str, looks_like: tuple[int, ...]) -> None:
    kinds = {"a": (4, False), "b": (4, True), "c": (6, False)}
    stack = Stack(*(Layer(*kinds[kind]) for kind in layers))
    assert shorten(stack) == looks_like
    assert len(stack.layers) == max(looks_like) + 1


def test_a_module_without_layers_stays_whole() -> None:
    assert shorten(nn.Linear(3, 3)) == ()
