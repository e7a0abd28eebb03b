"""A component's torch module → its ONNX graph, without any weight in memory.

Tracing runs on the meta device, and of layers that are alike on two alone; while the graph is optimized its weights
stand as graph inputs, so that no pass can read, fold or merge them. Source: docs/architecture.md, "Export".
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature as signature_of

import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import Tensor

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import Limits, ModelConfig
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import CAUSAL, SCOPES, Axis, Signature, axis_step, axis_unit, signature
from vlm_trt.exporter.layer_stack import restored, shorten
from vlm_trt.exporter.modules.build import TORCH_DTYPES, build_module
from vlm_trt.exporter.modules.decoder import Decoder
from vlm_trt.exporter.modules.onnx_operators import translation_table
from vlm_trt.exporter.modules.packed import pack_layers
from vlm_trt.exporter.packed_weights import PackedLayer

OPSET = 24
# Example sizes of the dynamic axes: distinct, and above one, since torch specializes axes of size 0 and 1.
_EXAMPLE_SIZES = {
    "images": 2, "batch": 3, "seq": 5, "image_tokens": 7, "window": 11, "edits": 13, "patches": 17, "slots": 19,
    "scored": 23, "crops": 29,
}  # fmt: skip
_TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
}
_IR_DTYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
    "int64": ir.DataType.INT64,
}
# Of the decoder's forward, before the cache; those that a model's signature leaves out are None.
_DECODER_ARGUMENTS = tuple(signature_of(Decoder.forward).parameters)[1:-1]


def trace(
    component: Component,
    model: ModelConfig,
    limits: Limits,
    precision: Precision,
    packed: Sequence[PackedLayer] = (),
) -> ir.Model:
    """The graph of one component, its weights declared as initializers without data.

    Args:
        component: which graph.
        model: sizes of the model.
        limits: the literal cache length.
        precision: type of weights, activations and cache.
        packed: the layers whose matrices have 4 bits.
    Returns:
        A model of opset 24, standard domain only, whose inputs and outputs are exactly the signature and whose
        initializers have the names, shapes and types of the module's parameters and no data yet.
    """
    with torch.device("meta"):
        module = build_module(component, model, precision.floating)
        pack_layers(module, packed, TORCH_DTYPES[precision.floating])
    parameters = {name: tuple(value.shape) for name, value in module.named_parameters()}
    looks_like = shorten(module)
    few = max(looks_like, default=-1) + 1
    graph = traced(component, module, _of_layers(component, model, few), limits, precision)
    if few < len(looks_like):
        graph = restored(graph, looks_like, signature(component, model, limits, precision))
    _have_4_bits(graph)
    graph.graph.name, graph.producer_name = "vlm_trt", "vlm-trt"
    if component is Component.DECODER and not model.decoder.prefix_lm:
        graph.metadata_props[CAUSAL] = "1"
    _check(graph, parameters)
    return graph


def traced(
    component: Component, module: torch.nn.Module, model: ModelConfig, limits: Limits, precision: Precision
) -> ir.Model:
    """The graph of a module as it is, optimized, with the names of the contract."""
    contract = signature(component, model, limits, precision)
    arguments, dynamic = _arguments(component, contract, model, limits)
    with _quiet():
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            optimize=False,
            verbose=False,
            opset_version=OPSET,
            dynamic_shapes=dynamic,
            input_names=[tensor.name for tensor in contract.inputs],
            output_names=[tensor.name for tensor in contract.outputs],
            custom_translation_table=translation_table(),
        )
    assert program is not None
    graph = program.model
    _optimize(graph)
    _name_after_contract(graph, contract)
    _keep_modules_alone(graph)
    return graph


def _of_layers(component: Component, model: ModelConfig, layers: int) -> ModelConfig:
    """The model whose decoder has a cache for so many layers."""
    if component is not Component.DECODER:
        return model
    return replace(model, decoder=replace(model.decoder, layers=layers))


def _arguments(
    component: Component, contract: Signature, model: ModelConfig, limits: Limits
) -> tuple[tuple[object, ...], tuple[object, ...]]:
    """Example inputs on the meta device and their dynamic axes, in the order of the module's forward."""
    steps = {name: axis_step(name, model) for name in _EXAMPLE_SIZES}
    units = {name: axis_unit(name, model) for name in _EXAMPLE_SIZES}
    dims = {name: torch.export.Dim(name) for name, step in steps.items() if step == 1}
    for name, step in steps.items():
        if step > 1:
            dims[name] = step * dims.get(units[name], torch.export.Dim(f"_{name}"))
    dims["window"] = torch.export.Dim("window", max=limits.max_seq_tokens)

    def example(axes: tuple[Axis, ...], dtype: str) -> Tensor:
        shape = [axis if isinstance(axis, int) else steps[axis] * _EXAMPLE_SIZES[units[axis]] for axis in axes]
        return torch.zeros(shape, dtype=_TORCH_DTYPES[dtype], device="meta")

    tensors: list[object] = [example(tensor.axes, tensor.dtype) for tensor in contract.inputs]
    dynamic: list[object] = [
        {at: dims[axis] for at, axis in enumerate(tensor.axes) if isinstance(axis, str)} for tensor in contract.inputs
    ]
    if component is Component.DECODER:
        plain = len(tensors) - 2 * model.decoder.layers
        tensors = [*tensors[:plain], tensors[plain:]]
        dynamic = [*dynamic[:plain], dynamic[plain:]]
        given = {tensor.name for tensor in contract.inputs}
        for at, name in enumerate(_DECODER_ARGUMENTS):
            if name not in given:
                tensors.insert(at, None)
                dynamic.insert(at, None)
    return tuple(tensors), tuple(dynamic)


def _optimize(graph: ir.Model) -> None:
    """Constant folding and dead-node removal on everything but the weights."""
    weights = list(graph.graph.initializers.values())
    inputs = len(graph.graph.inputs)
    for weight in weights:
        assert weight.name is not None
        graph.graph.initializers.pop(weight.name)
        weight.const_value = None
        graph.graph.inputs.append(weight)
    with _quiet():
        optimizer.optimize(graph, input_size_limit=1024, output_size_limit=1024)
    del graph.graph.inputs[inputs:]
    for weight in weights:
        graph.graph.initializers.add(weight)


def _have_4_bits(graph: ir.Model) -> None:
    """The integers of the graph, which torch knows in 8 bits alone, get their type."""
    for weight in graph.graph.initializers.values():
        if weight.dtype is ir.DataType.INT8:
            weight.dtype = ir.DataType.INT4


def _name_after_contract(graph: ir.Model, contract: Signature) -> None:
    """Gives inputs and outputs the contract's names, types and axes; an alien one is our mistake."""
    for values, tensors in ((graph.graph.inputs, contract.inputs), (graph.graph.outputs, contract.outputs)):
        assert len(values) == len(tensors), f"{len(values)} traced, {len(tensors)} in the contract"
        for value, tensor in zip(values, tensors, strict=True):
            assert value.dtype == _IR_DTYPES[tensor.dtype], f"{tensor.name}: {value.dtype}"
            value.name = tensor.name
            value.shape = ir.Shape(tensor.axes)


def _keep_modules_alone(graph: ir.Model) -> None:
    """Of what torch's exporter says of a node: where its source lies differs from machine to machine."""
    for node in graph.graph.all_nodes():
        for key in [key for key in node.metadata_props if key != SCOPES]:
            del node.metadata_props[key]


def _check(graph: ir.Model, parameters: dict[str, tuple[int, ...]]) -> None:
    """The graph holds the module's weights and nothing heavier, in the standard domain, untransposed."""
    stored = {name: tuple(value.shape or ()) for name, value in graph.graph.initializers.items() if name in parameters}
    assert stored == parameters, sorted(set(parameters) ^ set(stored))
    for node in graph.graph.all_nodes():
        assert node.domain == "", f"{node.op_type} of domain {node.domain}"
        first = node.inputs[0].name if node.op_type == "Transpose" and node.inputs[0] is not None else None
        assert first is None or first not in parameters, f"Transpose of the weight {first}"


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns of things that do not concern the caller (no torchvision, its own deprecations)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
