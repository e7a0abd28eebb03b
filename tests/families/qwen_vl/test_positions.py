"""Dynamic NTK, rotary tables and log-n, against the formulas of the original."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN
from vlm_trt.families.messages import PromptShape
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.positions import ntk_alpha, position_table

DECODER = read_config(GOLDEN / "ntk-256" / "checkpoint").decoder  # trained on 256


@pytest.mark.parametrize(
    ("tokens", "alpha"), [(1, 1), (128, 1), (256, 1), (257, 3), (512, 3), (513, 7), (1024, 7), (1025, 15), (8192, 63)]
)
def test_alpha_by_prompt_length(tokens: int, alpha: float) -> None:
    assert ntk_alpha(DECODER, tokens) == alpha
    assert ntk_alpha(replace(DECODER, dynamic_ntk=False), tokens) == 1


# A prompt of that many tokens has that factor.
PROMPTS = {1.0: 256, 3.0: 257, 7.0: 513}


@pytest.mark.parametrize("alpha", PROMPTS)
def test_rotary_rows_are_torchs(alpha: float) -> None:
    """The original computes them in fp32; so do we, to a rounding of the last bits."""
    table, dim = position_table(DECODER, PromptShape(PROMPTS[alpha]), 600), DECODER.rotary_dim
    assert table.rotation == alpha
    base = DECODER.rope_base * alpha ** (dim / (dim - 2))
    frequencies = 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.outer(torch.arange(600).float(), frequencies)
    assert np.abs(table.cos - angles.cos().numpy()).max() < 1e-4
    assert np.abs(table.sin - angles.sin().numpy()).max() < 1e-4
    assert table.cos.shape == (600, dim // 2) and table.cos.dtype == np.float32


def test_log_n_starts_beyond_the_training_length() -> None:
    scale = position_table(DECODER, PromptShape(1), 600).query_scale
    assert (scale[:256] == 1).all()
    for position in (257, 300, 600):  # 1-based
        assert scale[position - 1] == pytest.approx(math.log(position) / math.log(256), rel=1e-6)
    assert (position_table(replace(DECODER, logn_attention=False), PromptShape(1), 600).query_scale == 1).all()


def test_every_position_sees_what_came_before() -> None:
    table = position_table(DECODER, PromptShape(9), 600)
    assert (table.attend_until == np.arange(600)).all() and (table.attend_from == 0).all()
