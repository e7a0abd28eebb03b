"""How large the graphs' weights will be, before there is one: from the model's config and the shipped recipes."""

from collections.abc import Mapping
from functools import cache
from math import prod
from types import MappingProxyType

from vlm_trt.bundle.component import PIPELINE, Component
from vlm_trt.bundle.config import ModelConfig
from vlm_trt.bundle.precision import DTYPE_BYTES, PUBLISHED, Precision
from vlm_trt.families.family import family
from vlm_trt.families.weights import Weight

_INT4_BLOCK = 128  # inputs that share a scale in the shipped recipe


@cache
def weight_bytes(model: ModelConfig, precision: Precision) -> Mapping[Component, int]:
    """Bytes of each graph's weights, quantized as the shipped recipe of that kind does it."""
    found, decoder = dict.fromkeys(model.components, 0), model.decoder
    for weight in family(model.family).weight_map(model).weights:
        table = weight.component is Component.DECODER and weight.name == "embedding.weight"
        found[weight.component] += decoder.table_bytes(precision) if table else _bytes_of(weight, precision)
    if decoder.tied_head and precision.quantization is not None:  # a matrix of its own then
        values, size = decoder.vocab_size * decoder.hidden, DTYPE_BYTES[precision.dtype]
        four_bits = precision.quantization == "int4"
        found[Component.DECODER] += _in_4_bits(values, size) if four_bits else values + decoder.vocab_size * size
    return MappingProxyType(found)


def _bytes_of(weight: Weight, precision: Precision) -> int:
    """One weight: of a matrix, integers and their scales."""
    values, size = prod(weight.shape), 4 if weight.full_precision else DTYPE_BYTES[precision.dtype]
    matrix = len(weight.shape) == 2 and weight.name.endswith(".weight")
    head = weight.name == "lm_head.weight"
    if matrix and weight.component is Component.DECODER and precision.kind in ("int4", *(() if head else (PUBLISHED,))):
        return _in_4_bits(values, size)
    if precision.quantization is None or not matrix or weight.component not in PIPELINE:
        return values * size
    outputs = weight.shape[0] if head else weight.shape[1]
    return values + outputs * size


def _in_4_bits(values: int, size: int) -> int:
    """Of a matrix of so many values, with scales of so many bytes."""
    return values // 2 + values // _INT4_BLOCK * size
