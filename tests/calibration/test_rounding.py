"""Weights to integers and back: never further off than half a step, whatever the type of the scales."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.calibration.rounding import INT4_MAX, INT8_MAX, by_block, by_output, column_chunks, fitting_block
from vlm_trt.calibration.weight_file import packed


def matrix(seed: int, inputs: int = 64, outputs: int = 24) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((inputs, outputs)) * random.uniform(1e-3, 10, outputs)).astype(np.float32)


@given(st.integers(0, 1000), st.sampled_from([np.float32, np.float16]))
def test_8_bits_are_half_a_step_off_at_most(seed: int, dtype: type) -> None:
    weights = matrix(seed)
    done = by_output(weights, dtype)
    slack = 1.0 if dtype is np.float32 else 1.02  # a scale rounded down to fp16 cuts the largest weight a little
    assert (np.abs(weights - done.floats()) <= done.scales * 0.5 * slack + np.abs(weights) * 1e-3).all()
    assert np.abs(done.values).max() <= INT8_MAX
    assert (done.scales.astype(dtype) == done.scales).all()


def test_a_column_of_zeros_stays_zero() -> None:
    weights = matrix(1)
    weights[:, 3] = 0
    assert (by_output(weights).floats()[:, 3] == 0).all() and (by_block(weights, 32).floats()[:, 3] == 0).all()


def test_tiny_weights_do_not_get_a_scale_of_zero_in_fp16() -> None:
    done = by_output(matrix(1) * 1e-9, np.float16)
    assert (done.scales > 0).all() and np.isfinite(done.floats()).all()


@given(st.integers(0, 1000))
def test_4_bit_scales_are_never_worse_than_the_plain_ones(seed: int) -> None:
    weights, block = matrix(seed), 32
    plain = np.abs(weights.reshape(-1, block, 24)).max(axis=1) / INT4_MAX
    rough = np.clip(np.rint(weights / np.repeat(plain, block, 0)), -7, 7) * np.repeat(plain, block, 0)
    done = by_block(weights, block)
    assert np.abs(done.values).max() <= INT4_MAX
    assert np.square(weights - done.floats()).sum() <= np.square(weights - rough).sum() * (1 + 1e-5)


def test_what_is_important_is_kept_more_precise() -> None:
    weights = matrix(5)
    importance = np.ones(64, np.float32)
    importance[::32] = 1e4

    def error(done: np.ndarray) -> float:
        return float(np.square(weights - done)[::32].sum())

    assert error(by_block(weights, 32, importance).floats()) < error(by_block(weights, 32).floats())


@pytest.mark.parametrize(
    ("inputs", "block", "found"), [(256, 128, 128), (192, 128, 64), (96, 64, 32), (100, 128, None)]
)
def test_a_block_divides_the_inputs(inputs: int, block: int, found: int | None) -> None:
    assert fitting_block(inputs, block) == found


def test_chunks_cover_every_column_once() -> None:
    slices = list(column_chunks(1 << 20, 10))
    assert len(slices) > 1 and [c for one in slices for c in range(one.start, one.stop)] == list(range(10))


def test_4_bit_integers_lie_two_to_a_byte_the_first_in_the_low_half() -> None:
    assert packed(np.array([[1, -1, 7], [-7, 2, 0]], np.int8)).tolist() == [0xF1, 0x97, 0x02]
    assert packed(np.array([-8, 3, 5], np.int8)).tolist() == [0x38, 0x05]
