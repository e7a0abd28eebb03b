"""Inner tensors of running graphs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.store import Bundle
from vlm_trt.probing.session import Probing, Rounding, as_stored
from vlm_trt.runtime.backend import to_float32
from vlm_trt.runtime.load import open_engine
from vlm_trt.runtime.ort import CpuBackend


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_what_is_shown_is_what_comes_out(precision: Precision, demo_graphs: Callable[[str], Path]) -> None:
    """An inner tensor, an input and an output of the vision encoder, whatever their type."""
    bundle = Bundle.open(demo_graphs(precision.value))
    seen: dict[tuple[Component, str], np.ndarray] = {}

    def choose(component: Component, model: ir.Model) -> list[str]:
        if component is not Component.VISION_ENCODER:
            return []
        inner = next(node.outputs[0] for node in model.graph if node.op_type == "MatMul")
        return ["pixel_values", str(inner.name), "vision_features"]

    engine = open_engine(bundle, precision, Probing(choose, lambda *one: seen.update({one[:2]: one[2].copy()})))
    pixels = np.random.default_rng(0).normal(size=(1, 3, 128, 128)).astype(np.float32)
    features = engine.encode_vision([{"pixel_values": pixels}])
    shown = {name: value for (_, name), value in seen.items()}
    assert len(shown) == 3 and all(value.dtype == np.float32 for value in shown.values())
    assert np.array_equal(shown["pixel_values"], pixels)
    assert np.array_equal(shown["vision_features"], to_float32(features.read(), features.dtype))
    plain = open_engine(bundle, precision, as_stored(precision)).encode_vision([{"pixel_values": pixels}])
    difference = np.abs(to_float32(plain.read(), plain.dtype) - shown["vision_features"]).max()
    assert difference <= np.abs(shown["vision_features"]).max() * (1e-5 if precision is Precision.FP32 else 5e-2)


def test_fp32_needs_no_rounding() -> None:
    assert type(as_stored(Precision.FP32)) is type(as_stored(Precision.INT8)) is CpuBackend
    assert isinstance(as_stored(Precision.INT8_BF16), Rounding)
    assert Precision.BF16 in Rounding.precisions and Precision.BF16 not in CpuBackend.precisions
