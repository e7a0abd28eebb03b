"""The decoder's cache in 8 bits: keys and values rounded where they are written, a static scale per head and channel.

Operators of `ai.onnx` alone, as everywhere. On the CPU the decoder is loaded with ONNX Runtime's own attention in their
place (`runtime/grouped_attention.py`), which reads the integers where they lie.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from vlm_trt.calibration.editing import call, initializer
from vlm_trt.calibration.rounding import INT8_MAX, Floats
from vlm_trt.calibration.weight_file import Weights

# What the names of nodes begin with that round and restore it: that of the graph's inputs.
_PREFIX = "past_key_values."
# No channel is taken to be smaller than the largest one's share: samples may have met nothing of it.
_LEAST_SHARE = 2.0**-10


@dataclass(frozen=True)
class Cached:
    """Keys, or values, of one layer."""

    name: str  # of the cache's input, "past_key_values.3.key"
    source: str  # the activation that is written [batch, heads, seq, size]
    heads: int
    size: int

    @property
    def channels(self) -> int:
        return self.heads * self.size


def find_cached(model: ir.Model) -> tuple[Cached, ...]:
    """All that a decoder caches, in graph order; nothing of other graphs."""
    found = []
    for node in _writes(model):
        past, source, _ = node.inputs
        assert past is not None and past.name and past.shape is not None and source is not None and source.name
        _, heads, _, size = past.shape
        assert isinstance(heads, int) and isinstance(size, int)
        found.append(Cached(past.name, source.name, heads, size))
    return tuple(found)


def round_cache(model: ir.Model, limits: Mapping[str, Floats], file: Weights) -> None:
    """Makes the cache of a decoder one of integers.

    Args:
        model: its graph; changed in place.
        limits: by `Cached.source`, of every one or of none, the largest magnitude to be shown of each channel
            [heads · size].
        file: where the scales are placed.
    """
    if not limits:
        return
    bounds = [
        initializer(model, f"cache.{name}", ir.tensor(np.float32(bound)))
        for name, bound in (("least", -INT8_MAX - 1), ("largest", INT8_MAX))
    ]
    for one, write in zip(find_cached(model), _writes(model), strict=True):
        scales = scales_of(limits[one.source]).reshape(1, one.heads, 1, one.size)
        name = f"{one.name}.scale"
        scale = initializer(model, name, file.append(name, scales, ir.DataType.FLOAT))
        _round(model, one, write, scale, bounds)
        for use in list(write.outputs[0].uses()):
            _restore(model, one, use.node, scale)


def stores(node: ir.Node) -> bool:
    """Whether a node was put there to round the cache, or to restore it."""
    return node.name is not None and node.name.startswith(_PREFIX)


def scales_of(limits: Floats) -> Floats:
    """What one step of each channel's integers stands for."""
    largest = float(limits.max())
    shown = np.maximum(limits, largest * _LEAST_SHARE) if largest > 0 else np.ones_like(limits)
    return np.asarray(shown / INT8_MAX, dtype=np.float32)


def _writes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "TensorScatter"]


def _round(model: ir.Model, one: Cached, write: ir.Node, scale: ir.Value, bounds: list[ir.Value]) -> None:
    """Integers are written, and the cache is one of them."""
    past, source, _ = write.inputs
    assert past is not None and source is not None
    divided = ir.node("Div", [source, scale], name=f"{one.name}_divide")
    call(divided, f"{one.name}.divided", ir.DataType.FLOAT)
    rounded = ir.node("Round", divided.outputs, name=f"{one.name}_round")  # halves to even, as the kernel does
    call(rounded, f"{one.name}.rounded", ir.DataType.FLOAT)
    clipped = ir.node("Clip", [rounded.outputs[0], *bounds], name=f"{one.name}_clip")
    call(clipped, f"{one.name}.clipped", ir.DataType.FLOAT)
    stored = ir.node("Cast", clipped.outputs, {"to": ir.DataType.INT8}, name=f"{one.name}_store")
    call(stored, f"{one.name}.stored", ir.DataType.INT8)
    model.graph.insert_before(write, (divided, rounded, clipped, stored))
    write.replace_input_with(1, stored.outputs[0])
    past.dtype = write.outputs[0].dtype = ir.DataType.INT8


def _restore(model: ir.Model, one: Cached, look: ir.Node, scale: ir.Value) -> None:
    """What is looked at of the cache in floats again: after the Slice, so that no more of it is."""
    assert look.op_type == "Slice", f"{look.op_type} reads {one.name}"
    seen = look.outputs[0]
    uses = list(seen.uses())
    seen.dtype = ir.DataType.INT8
    floats = ir.node("Cast", [seen], {"to": ir.DataType.FLOAT}, name=f"{one.name}_load")
    call(floats, f"{one.name}.loaded", ir.DataType.FLOAT)
    restored = ir.node("Mul", [floats.outputs[0], scale], name=f"{one.name}_restore")
    call(restored, f"{one.name}.restored", ir.DataType.FLOAT)
    model.graph.insert_after(look, (floats, restored))
    for use in uses:
        use.node.replace_input_with(use.idx, restored.outputs[0])
