"""What the decoder graph is told about positions: a number for time, row and column each, in three parts of a head.

A text counts up in all three alike. A picture's tokens have their time, row and column, counted from where the picture
begins; times of a video's frames are as far apart as the model has it, by number or by seconds. The text behind it goes
on behind the largest of them, and so does the answer.
"""

from collections.abc import Sequence

import numpy as np

from vlm_trt.bundle.config import DecoderConfig
from vlm_trt.families.messages import ImageSpan, PromptShape
from vlm_trt.families.positions import Ints, PositionTable, attention_ends, rotary_angles


def position_table(decoder: DecoderConfig, shape: PromptShape, positions: int) -> PositionTable:
    """Rotary rows for the positions 0…positions−1.

    Args:
        decoder: rotary size, base, and which frequencies turn with what.
        shape: of the prompt, whose pictures have grids.
        positions: how many rows (the cache length).
    Source: get_rope_index of transformers; it takes cos and sin of all numbers and puts the parts together afterwards.
    """
    numbers = position_numbers(shape.spans, positions)
    turning = np.repeat(np.arange(3), decoder.rope_sections)  # [rotary/2]: with which number each frequency turns
    frequencies = rotary_angles(decoder.rotary_dim, decoder.rope_base, 1, first=1)[0]
    angles = np.take(numbers.T.astype(np.float32), turning, axis=1) * frequencies  # [positions, rotary/2]
    until, start = attention_ends(decoder, shape.prefix, positions)
    return PositionTable(np.cos(angles), np.sin(angles), np.ones(positions, np.float32), until, start)


def position_numbers(spans: Sequence[ImageSpan], positions: int) -> Ints:
    """Time, row and column [3, positions] of every position.

    Args:
        spans: of the pictures, in order, each with its grid.
        positions: how many there are, those of the spans among them.
    Source: releases of transformers differ on what follows a video that is longer than wide: 5.23 goes on behind its
        rows and columns only, so that the question lies amid its frames. This is 4.57's rule, behind its time too; that
        times are fractions is 5.23's, in fp32.
    """
    numbers = np.empty((3, positions), dtype=np.int64)
    done = following = 0
    for span in spans:
        assert span.grid is not None
        text = span.start - done
        numbers[:, done : span.start] = np.arange(following, following + text)
        own = np.indices(span.grid).reshape(3, -1)
        own[0] = (own[0].astype(np.float32) * np.float32(span.time_step)).astype(np.int64)  # rounded down
        numbers[:, span.start : span.stop] = following + text + own
        done, following = span.stop, following + text + int(own.max()) + 1
    numbers[:, done:] = np.arange(following, following + positions - done)
    return numbers
