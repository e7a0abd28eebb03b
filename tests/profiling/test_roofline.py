"""Floors by hand."""

import pytest

from vlm_trt.bundle.component import Component
from vlm_trt.bundle.config import ChatFormat, DecoderConfig, GenerationDefaults, ModelConfig
from vlm_trt.bundle.parts import Activation, OpenClipTower, ResamplerConnector, SerialBlock
from vlm_trt.bundle.picture_rules import Squash
from vlm_trt.bundle.precision import Precision
from vlm_trt.profiling.probe import Ceilings
from vlm_trt.profiling.roofline import gaps
from vlm_trt.profiling.statistics import summary
from vlm_trt.profiling.work import Cost, costs
from vlm_trt.profiling.workload import Workload

MODEL = ModelConfig(
    family="qwen_vl",
    pictures=Squash(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    # 4 patches of 8 numbers, one layer
    vision=OpenClipTower(
        image_size=4, patch_size=2, width=8, layers=1, heads=2, mlp_width=16, norm_eps=1e-6, position_grid=2
    ),
    connector=ResamplerConnector(tokens=2, vision_width=8, hidden=8, heads=2, norm_eps=1e-6),
    decoder=DecoderConfig(
        vocab_size=100,
        hidden=8,
        layers=3,
        block=SerialBlock(
            heads=2,
            kv_heads=2,
            head_dim=4,
            attention_scale=0.5,
            mlp_width=16,
            activation=Activation.SILU,
            norm_eps=1e-6,
            qkv_bias=True,
        ),
        embedding_scale=1.0,
        tied_head=False,
        logit_cap=None,
        rotary_dim=4,
        rope_base=1e4,
        trained_tokens=64,
        max_positions=64,
        dynamic_ntk=False,
        logn_attention=False,
    ),
    generation=GenerationDefaults(ChatFormat.RAW, (), 8, False, 1.0, 0, 1.0, 1.0, 64),
)
WEIGHTS = {Component.VISION_ENCODER: 5000, Component.RESAMPLER: 600, Component.DECODER: 20_000}


def found(precision: Precision = Precision.FP32, **workload: int) -> dict[str, Cost]:
    asked = Workload(new_tokens=10, **workload)
    return costs(MODEL, WEIGHTS, precision, asked, prompt_tokens=6, images_per_run=1, patches=4)


def test_a_decode_step() -> None:
    """Matrices of 3·(4·8·8 + 3·8·16) = 1920 and the head of 800 numbers; the cache in the middle: 6 + 5 positions."""
    step = found(batch=2)["decode_step"]
    attention = 2 * 3 * 8 * 11
    assert step.operations == 2 * 2 * (1920 + 800 + attention)
    assert step.bytes == 20_000 - 100 * 8 * 4 + 2 * 11 * (2 * 3 * 8 * 4)


def test_a_prefill() -> None:
    """All but the head is computed for each of six tokens; of attention half."""
    prefill = found()["prefill"]
    assert prefill.operations == 2 * (6 * 1920 + 800 + 3 * 8 * 6 * 7)
    assert prefill.bytes == 20_000 - 3200 + 6 * (2 * 3 * 8 * 4 + 8 * 4)


def test_vision() -> None:
    vision = found()["vision_encoder"]
    assert vision.operations == 2 * (4 * (4 * 64 + 2 * 8 * 16 + 3 * 4 * 8) + 2 * 16 * 8)
    assert vision.bytes == 5000 + 4 * 3 * 16 + 4 * 4 * 8
    assert found()["resampler"].operations == 2 * (4 * 2 * 64 + 2 * 2 * 64 + 2 * 2 * 4 * 8)


def test_half_precision_moves_half_of_the_cache() -> None:
    wide, half = (found(precision, batch=1)["decode_step"].bytes for precision in (Precision.FP32, Precision.FP16))
    assert wide - (20_000 - 3200) == 2 * (half - (20_000 - 1600))


def test_without_pictures_nothing_sees() -> None:
    assert set(found(images=0)) == {"prefill", "decode_step", "sampling"}


@pytest.mark.parametrize(
    ("cost", "ms", "floor", "by", "limit"),
    [
        (Cost(1e6, 1e6), 2.0, 1.0, "bandwidth", "bandwidth"),
        (Cost(1e6, 1e9), 12.0, 10.0, "arithmetic", "arithmetic"),
        (Cost(1e6, 1e6), 9.0, 1.0, "bandwidth", "overhead"),
    ],
)
def test_what_limits_a_stage(cost: Cost, ms: float, floor: float, by: str, limit: str) -> None:
    seen = {"prefill": summary([ms], "ms")}
    (gap,) = gaps({"prefill": cost, "unseen": cost}, seen, Ceilings(1e9, 1e11, None), Precision.FP32).values()
    assert gap.floor_ms == pytest.approx(floor) and gap.times_the_floor == pytest.approx(ms / floor)
    assert (gap.floor_by, gap.limited_by) == (by, limit)


def test_8_bit_products_have_a_ceiling_of_their_own() -> None:
    seen = {"prefill": summary([10.0], "ms")}
    for precision, floor in ((Precision.INT8, 2.5), (Precision.INT8_WEIGHT, 10.0), (Precision.FP32, 10.0)):
        (gap,) = gaps({"prefill": Cost(1, 1e9)}, seen, Ceilings(1e9, 1e11, 4e11), precision).values()
        assert gap.floor_ms == pytest.approx(floor)
