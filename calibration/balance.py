"""Factors per channel that a norm takes from an activation and its products' weights take back: nothing changes but
what is hard to round.

Sources: Xiao et al., SmoothQuant, 2022 (a given exponent, for weights and activations in 8 bits); Lin et al., AWQ, 2023
(the exponent searched for, for weights in few bits).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from vlm_trt.calibration.linears import matrix_columns
from vlm_trt.calibration.observers import Seen
from vlm_trt.calibration.rewrite import Activation, Treatment, rounded, squared_error
from vlm_trt.calibration.rounding import Floats

# Exponents that the search tries; 0 is no balancing.
_EXPONENTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
# Outputs that the search looks at, of every matrix.
_SEARCHED_OUTPUTS = 512
# No channel is divided by more, or by less: one that is nearly always zero has no range to give, and what a gated half
# takes back in half precision must not overflow.
_MOST, _LEAST = 1e2, 1e-1


def smoothing(
    seen: Seen, treatments: Sequence[Treatment], tensors: Mapping[str, ir.TensorProtocol], alpha: float
) -> Floats:
    """SmoothQuant's factors: largest activation^α / largest weight^(1−α), per channel.

    Args:
        seen: the activation.
        treatments: its products.
        tensors: their matrices by name.
        alpha: 0 leaves all range to the activation, 1 moves all of it into the weights.
    """
    largest = np.zeros(seen.channels, np.float32)
    for one in treatments:
        for _, matrix in matrix_columns(tensors[one.linear.weight], one.linear):
            largest = np.maximum(largest, np.abs(matrix).max(axis=1))
    return _centred(_power(seen.largest, alpha) / _power(largest, 1 - alpha))


def searched(seen: Seen, treatments: Sequence[Treatment], tensors: Mapping[str, ir.TensorProtocol]) -> Floats:
    """AWQ's factors: mean magnitude^α with the α whose rounded products differ least on the sampled rows."""
    mean = np.asarray(seen.magnitudes / seen.rows_seen, dtype=np.float32)
    candidates = [_centred(_power(mean, exponent)) for exponent in _EXPONENTS]
    parts = [(one, _some_columns(one, tensors[one.linear.weight])) for one in treatments]
    costs = [sum(_cost(seen, one, matrix, factors) for one, matrix in parts) for factors in candidates]
    return candidates[int(np.argmin(costs))]


def activation_of(seen: Seen, factors: Floats | None, limit: float) -> Activation:
    """What the rewriting needs of an activation seen before its channels were divided by the factors."""
    divisor = np.ones(seen.channels, np.float32) if factors is None else factors
    importance = np.asarray(seen.squares / max(seen.rows_seen, 1) / np.square(divisor), dtype=np.float32)
    return Activation(seen.rows / divisor, importance, limit)


def _cost(seen: Seen, treatment: Treatment, matrix: Floats, factors: Floats) -> float:
    """Σ of squared errors of the product; both halves of the balance are in it."""
    known = activation_of(seen, factors, float((seen.largest / factors).max()))
    balanced = matrix * factors[:, None]
    done = rounded(balanced, treatment, known, np.dtype(np.float32))
    return float(squared_error(balanced, done, treatment.kind, known)[0])


def _some_columns(treatment: Treatment, tensor: ir.TensorProtocol) -> Floats:
    linear = treatment.linear
    step = max(1, linear.outputs // _SEARCHED_OUTPUTS)
    parts = [matrix[:, (-columns.start) % step :: step] for columns, matrix in matrix_columns(tensor, linear)]
    return np.concatenate(parts, axis=1)


def _power(values: Floats, exponent: float) -> Floats:
    """Magnitudes to that power; the ones next to nothing count as a thousandth of the mean."""
    least = max(float(values.mean()) * 1e-3, 1e-12)
    return np.asarray(np.maximum(values, least) ** exponent, dtype=np.float32)


def _centred(factors: Floats) -> Floats:
    """Their geometric mean becomes 1, so that neither side leaves the range of its type."""
    return np.asarray(np.clip(factors / np.exp(np.log(factors).mean()), _LEAST, _MOST), dtype=np.float32)
