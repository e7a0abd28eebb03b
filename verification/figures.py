"""How far a graph is from the model, as numbers, and how far it may be."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.precision import Precision

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Figures:
    """One comparison of a graph's values with the model's."""

    stage: str  # e.g. "vision_encoder", "whole_chain"; "chunked_prefill", "cache_off", "batch": within the graph
    sample: str  # which prompt, and which step or slot of it
    max_abs: float
    relative: float  # max_abs over the model's largest magnitude
    cosine: float


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost."""

    relative: float
    cosine: float


# fp32: two orders of summation of the same products differ by a few 1e-6; 1e-4 leaves room for depth.
# fp16, bf16: rounding of weights and activations to 11 and 8 bits over tens of layers; the cosine is the gate that
# catches a wrong computation, the relative bound an overflow or a lost outlier. bf16 keeps three bits fewer than fp16:
# errors are 8 times, and 1 − cosine is 64 times as large.
TOLERANCES = {
    Precision.FP32: Tolerance(relative=1e-4, cosine=0.999999),
    Precision.FP16: Tolerance(relative=2e-2, cosine=0.9999),
    Precision.BF16: Tolerance(relative=1e-1, cosine=0.995),
}

# An engine rounds activations to 8 bits where the graph does, but a value at the edge between two integers may fall to
# either side, and the layers after it carry that on.
_QUANTIZED = Tolerance(relative=1e-1, cosine=0.999)


# ONNX Runtime's CPU kernels for 4-bit weights round activations to 8 bits by blocks: half a percent of a product, layer
# upon layer. That the graph is the model is shown with exact products; this is about what answers.
AS_ROUNDED = Tolerance(relative=2e-1, cosine=0.99)


def tolerance_of(precision: Precision) -> Tolerance:
    """How far graphs may be from the model, or engines of quantized graphs from those."""
    return TOLERANCES[precision.floating] if precision.quantization is None else _QUANTIZED


# Another picture must change the logits by more than this share of their largest magnitude, and in the direction
# the model says.
SWAP_CHANGE = 1e-3
SWAP_COSINE = 0.99


def compare(stage: str, sample: str, model: Floats, graph: Floats) -> Figures:
    """Largest and relative difference, and cosine, of two arrays of one shape; NaN anywhere compares as infinite."""
    assert model.shape == graph.shape, f"{stage}: {model.shape} and {graph.shape}"
    expected, found = model.astype(np.float64).ravel(), graph.astype(np.float64).ravel()
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return Figures(stage, sample, float("inf"), float("inf"), 0.0)
    largest = float(np.abs(expected - found).max())
    return Figures(stage, sample, largest, largest / (float(np.abs(expected).max()) or 1.0), cosine(expected, found))


def cosine(a: Floats, b: Floats) -> float:
    """Cosine of two vectors; 1 for two zero vectors, 0 where only one is zero."""
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return float(not a.any() and not b.any())
    return float(np.dot(a.ravel(), b.ravel()) / norms)


def failure(figures: Figures, tolerance: Tolerance) -> str | None:
    """The sentence that says what is outside the tolerance, or None."""
    what = f"{figures.stage} of {figures.sample}"
    if not isfinite(figures.relative):
        return f"{what}: not all values are finite"
    if figures.relative > tolerance.relative:
        return f"{what}: relative difference {figures.relative:.2e} is above {tolerance.relative:.0e}"
    if figures.cosine < tolerance.cosine:
        return f"{what}: cosine {figures.cosine:.6f} is below {tolerance.cosine}"
    return None
