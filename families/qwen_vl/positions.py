"""What the decoder graph is told about positions: rotary tables with dynamic NTK, and the log-n query scale.

All of it is arithmetic on the host, per sequence; nothing of it is baked into the graph.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.config import DecoderConfig

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PositionTable:
    """Rows for the positions 0…n−1 of a sequence: rotary cos and sin [n, rotary/2], query scale [n]."""

    cos: Floats
    sin: Floats
    query_scale: Floats


def ntk_alpha(decoder: DecoderConfig, prompt_tokens: int) -> float:
    """The NTK factor a sequence keeps for its whole life: chosen at prefill from the length of its prompt.

    Source: Qwen-VL's modelling code, `get_ntk_alpha`: max(2^ceil(log2(T / seq_length) + 1) − 1, 1).
    """
    if not decoder.dynamic_ntk or prompt_tokens <= decoder.trained_tokens:
        return 1.0
    octaves = math.ceil(math.log(prompt_tokens / decoder.trained_tokens, 2) + 1)
    return float(max(2**octaves - 1, 1))


@lru_cache(maxsize=16)
def position_table(decoder: DecoderConfig, alpha: float, positions: int) -> PositionTable:
    """Rotary and log-n rows for the positions 0…positions−1.

    Args:
        decoder: head size, base and training length.
        alpha: the sequence's NTK factor, from `ntk_alpha`.
        positions: how many rows (the cache length).
    Returns:
        cos and sin [positions, rotary/2] and query scale [positions], all float32.
    Source: computed in fp32 as the original does, so that rounding agrees at large positions too.
    """
    dim = decoder.rotary_dim
    base = decoder.rope_base * alpha ** (dim / (dim - 2)) if dim > 2 else decoder.rope_base
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    frequencies = np.float32(1.0) / np.power(np.float32(base), exponents)
    angles = np.outer(np.arange(positions, dtype=np.float32), frequencies)
    return PositionTable(np.cos(angles), np.sin(angles), _query_scale(decoder, positions))


def _query_scale(decoder: DecoderConfig, positions: int) -> Floats:
    """log(i) / log(trained_tokens) for the 1-based position i beyond the training length, else 1."""
    scale = np.ones(positions, dtype=np.float32)
    if decoder.logn_attention and positions > decoder.trained_tokens:
        beyond = np.arange(decoder.trained_tokens + 1, positions + 1, dtype=np.float64)
        scale[decoder.trained_tokens :] = np.log(beyond) / math.log(decoder.trained_tokens)
    return scale
