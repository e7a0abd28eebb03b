"""Numbers to integers: symmetric, the scale of every group of weights from its largest magnitude."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int8]

INT8_MAX, INT4_MAX, FP8_MAX = 127, 7, 448
FP8 = ml_dtypes.float8_e4m3fn
# Columns are quantized some at a time, so that a matrix is never there whole in fp32.
_CHUNK_VALUES = 4 << 20
# Shares of the largest magnitude that a 4-bit scale may stand for: cutting one weight can serve fifteen others.
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True)
class Quantized:
    """A matrix [inputs, outputs] as numbers of few bits times scales."""

    values: NDArray[Any]  # [inputs, outputs], int8 or FP8
    scales: Floats  # [outputs], or [inputs / block, outputs]
    block: int | None

    def floats(self) -> Floats:
        """The matrix that the integers stand for."""
        scales = self.scales if self.block is None else np.repeat(self.scales, self.block, axis=0)
        return self.values.astype(np.float32) * scales


def by_output(matrix: Floats, dtype: type[np.floating] | np.dtype[np.floating] = np.float32) -> Quantized:
    """8 bits, one scale per output.

    Args:
        matrix: [inputs, outputs].
        dtype: type the scales are stored in; the integers are rounded with the scale as stored.
    """
    scales = _stored(np.abs(matrix).max(axis=0) / INT8_MAX, dtype)
    return Quantized(_rounded(matrix, scales, INT8_MAX), scales, None)


def as_fp8(matrix: Floats, dtype: type[np.floating] | np.dtype[np.floating] = np.float32) -> Quantized:
    """Floats of 8 bits (E4M3), one scale per output: its largest weight becomes the largest of the type."""
    scales = _stored(np.abs(matrix).max(axis=0) / FP8_MAX, dtype)
    return Quantized(fp8(matrix / scales), scales, None)


def fp8(values: Floats) -> NDArray[Any]:
    """The nearest of the type; what is larger than all of them becomes the largest."""
    return np.clip(values, -FP8_MAX, FP8_MAX).astype(FP8)


def by_block(
    matrix: Floats,
    block: int,
    importance: Floats | None = None,
    dtype: type[np.floating] | np.dtype[np.floating] = np.float32,
) -> Quantized:
    """4 bits, one scale per output and `block` inputs: of several, the one with the least squared error.

    Args:
        matrix: [inputs, outputs]; `block` divides inputs.
        block: inputs that share a scale.
        importance: [inputs] weight of each input's error, as its mean square over the samples; None: all alike.
        dtype: as in `by_output`.
    """
    blocks = matrix.reshape(-1, block, matrix.shape[1])
    largest = np.abs(blocks).max(axis=1)
    weights = np.ones(matrix.shape[0], np.float32) if importance is None else importance
    weights = weights.reshape(-1, block, 1)
    best, least = np.empty_like(largest), np.full_like(largest, np.inf)
    for share in _SHRINK:
        scales = _stored(largest * share / INT4_MAX, dtype)
        error = blocks - _rounded(blocks, scales[:, None], INT4_MAX) * scales[:, None]
        cost = (np.square(error) * weights).sum(axis=1)
        better = cost < least
        best[better], least[better] = scales[better], cost[better]
    return Quantized(_rounded(blocks, best[:, None], INT4_MAX).reshape(matrix.shape), best, block)


def fitting_block(inputs: int, block: int, least: int = 16) -> int | None:
    """The largest block up to `block` that divides the inputs; None where there is none of at least `least`."""
    while inputs % block:
        block //= 2
    return block if block >= least else None


def column_chunks(inputs: int, outputs: int) -> Iterator[slice]:
    """The outputs of a matrix, as many at a time as fit into memory easily."""
    step = max(1, _CHUNK_VALUES // inputs)
    for start in range(0, outputs, step):
        yield slice(start, min(start + step, outputs))


def _rounded(values: Floats, scales: Floats, most: int) -> Integers:
    """To the nearest integer, ties to even as QuantizeLinear has it, within ±most."""
    rounded: Integers = np.clip(np.rint(values / scales), -most, most).astype(np.int8)
    return rounded


def smallest_normal(dtype: Any) -> float:
    """The smallest positive number that a type shows with all its bits; that of bf16 is fp32's."""
    return float(np.finfo(np.float16 if np.dtype(dtype) == np.float16 else np.float32).tiny)


def _stored(scales: Floats, dtype: type[np.floating] | np.dtype[np.floating]) -> Floats:
    """The scales as they can be stored; 1 where all weights are 0, and never so small that it becomes 0."""
    kept = np.where(scales == 0, 1, np.maximum(scales, smallest_normal(dtype)))
    return np.asarray(kept.astype(dtype), dtype=np.float32)
