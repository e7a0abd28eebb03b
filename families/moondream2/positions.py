"""Moondream's positions: of each head the first numbers turn, pair by pair, the others stand still."""

from dataclasses import replace

import numpy as np

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.positions import PositionTable, plain_positions

ROTARY_DIM = 32  # Source: rope.py and text.py of vikhyat/moondream


def position_table(decoder: DecoderConfig, shape: PromptShape, positions: int) -> PositionTable:
    """As `plain_positions`; what stands still is turned by nothing, so that heads are rotated as a whole."""
    turning = plain_positions(replace(decoder, rotary_dim=ROTARY_DIM), shape, positions)
    still = ((0, 0), (0, (decoder.rotary_dim - ROTARY_DIM) // 2))
    return replace(turning, cos=np.pad(turning.cos, still, constant_values=1), sin=np.pad(turning.sin, still))
