"""What the decoder graph is told about positions: rotary tables with dynamic NTK, and the log-n query scale.

All of it is arithmetic on the host, per sequence; nothing of it is baked into the graph.
"""

import math
from functools import lru_cache

import numpy as np

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.positions import Floats, PositionTable, attention_ends, rotary_angles


def ntk_alpha(decoder: DecoderConfig, prompt_tokens: int) -> float:
    """The NTK factor a sequence keeps for its whole life: chosen at prefill from the length of its prompt.

    Source: Qwen-VL's modelling code, `get_ntk_alpha`: max(2^ceil(log2(T / seq_length) + 1) − 1, 1).
    """
    if not decoder.dynamic_ntk or prompt_tokens <= decoder.trained_tokens:
        return 1.0
    octaves = math.ceil(math.log(prompt_tokens / decoder.trained_tokens, 2) + 1)
    return float(max(2**octaves - 1, 1))


def position_table(decoder: DecoderConfig, shape: PromptShape, positions: int) -> PositionTable:
    """Rotary and log-n rows for the positions 0…positions−1; `rotation` is the sequence's NTK factor.

    Args:
        decoder: head size, base and training length.
        shape: of the prompt, whose length decides on the factor.
        positions: how many rows (the cache length).
    """
    return _table(decoder, ntk_alpha(decoder, shape.tokens), positions)


@lru_cache(maxsize=16)
def _table(decoder: DecoderConfig, alpha: float, positions: int) -> PositionTable:
    dim = decoder.rotary_dim
    base = decoder.rope_base * alpha ** (dim / (dim - 2)) if dim > 2 else decoder.rope_base
    angles = rotary_angles(dim, base, positions)
    until, start = attention_ends(decoder, 0, positions)
    return PositionTable(np.cos(angles), np.sin(angles), _query_scale(decoder, positions), until, start, alpha)


def _query_scale(decoder: DecoderConfig, positions: int) -> Floats:
    """log(i) / log(trained_tokens) for the 1-based position i beyond the training length, else 1."""
    scale = np.ones(positions, dtype=np.float32)
    if decoder.logn_attention and positions > decoder.trained_tokens:
        beyond = np.arange(decoder.trained_tokens + 1, positions + 1, dtype=np.float64)
        scale[decoder.trained_tokens :] = np.log(beyond) / math.log(decoder.trained_tokens)
    return scale
