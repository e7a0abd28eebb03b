"""What the decoder graph is told about the positions of a sequence: arithmetic on the host, none of it in the graph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.families.messages import PromptShape

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PositionTable:
    """Rows for the positions 0…n−1 of a sequence."""

    cos: Floats  # rotary [n, rotary/2]
    sin: Floats
    query_scale: Floats  # [n]
    attend_until: Ints  # last position that each one sees [n]
    attend_from: Ints  # first position that each one sees on layers with a window [n]
    rotation: float = 1.0  # keys of two sequences are alike only where this is


def attention_ends(decoder: DecoderConfig, prefix: int, positions: int) -> tuple[Ints, Ints]:
    """The last position that each one sees, and the first one on layers with a window: [positions] each.

    Inside the prefix every position sees all of it, whatever the window; behind it a position sees what came before.

    Args:
        decoder: has the window; its graph may be computed as causal where it is no prefix LM.
        prefix: so many positions attend to each other in both directions.
        positions: how many rows.
    Source: Gemma 2 as PaliGemma 2 uses it; there the prefix is joined to the mask after the window.
    """
    assert prefix == 0 or decoder.prefix_lm
    own = np.arange(positions, dtype=np.int64)
    until, start = own.copy(), np.zeros(positions, dtype=np.int64)
    until[:prefix] = prefix - 1
    if decoder.window is not None:
        start = np.maximum(own - decoder.window + 1, 0)
        start[:prefix] = 0
    return until, start


def rotary_angles(rotary_dim: int, base: float, positions: int, first: int = 0) -> Floats:
    """Angles [positions, rotary/2] of the positions first, first + 1, …

    Source: computed in fp32 as the original implementations do, so that rounding agrees at large positions too.
    """
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    frequencies = np.float32(1.0) / np.power(np.float32(base), exponents)
    angles: Floats = np.outer(np.arange(first, first + positions, dtype=np.float32), frequencies)
    return angles


def plain_positions(decoder: DecoderConfig, shape: PromptShape, positions: int, first: int = 0) -> PositionTable:
    """Of a model with rotary embedding alone.

    Args:
        decoder: rotary size and base, and the window.
        shape: of the prompt.
        positions: how many rows (the cache length).
        first: the number of the first position.
    """
    angles = rotary_angles(decoder.rotary_dim, decoder.rope_base, positions, first)
    until, start = attention_ends(decoder, shape.prefix, positions)
    return PositionTable(np.cos(angles), np.sin(angles), np.ones(positions, np.float32), until, start)
