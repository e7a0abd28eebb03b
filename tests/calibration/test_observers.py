"""What is remembered of activations: the same in any order, in bounded memory; and the ranges chosen from it."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.bundle.component import Component
from vlm_trt.calibration import state
from vlm_trt.calibration.observers import BINS, KEPT_ROWS, Seen, range_of
from vlm_trt.calibration.recipe import Observer


def values(seed: int, rows: int = 50, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, 8)) * scale).astype(np.float32)


def seen(*parts: np.ndarray) -> Seen:
    found, random = Seen(8), np.random.default_rng(0)
    for part in parts:
        found.add(part, random)
    return found


def require_equal(one: Seen, other: Seen) -> None:
    assert (one.counts == other.counts).all() and one.exponent == other.exponent and one.rows_seen == other.rows_seen
    np.testing.assert_allclose(one.squares, other.squares, rtol=1e-12)
    np.testing.assert_allclose(one.magnitudes, other.magnitudes, rtol=1e-12)
    assert (one.largest == other.largest).all()


@given(st.integers(0, 100), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_two_halves_joined_are_the_whole(seed: int, small: float, large: float) -> None:
    first, second = values(seed, scale=small), values(seed + 1, scale=large)
    whole, joined, other = seen(first, second), seen(first), seen(second)
    joined.join(other)
    require_equal(joined, whole)
    reverse = seen(second)
    reverse.join(seen(first))
    require_equal(reverse, whole)
    assert whole.counts.sum() == first.size + second.size


def test_memory_is_bounded_whatever_is_seen() -> None:
    found = seen(*(values(seed) for seed in range(40)))
    assert found.rows.shape == (KEPT_ROWS, 8) and found.counts.shape == (BINS,)
    assert found.rows_seen == 2000 and found.limit == np.abs(np.concatenate([values(s) for s in range(40)])).max()


def test_the_rows_kept_are_drawn_from_all_of_them() -> None:
    parts = [np.full((50, 8), number, np.float32) for number in range(1, 41)]
    found = seen(*parts)
    assert len(set(found.rows[:, 0].tolist())) > 20 and 12 < found.rows[:, 0].mean() < 29


def test_max_is_the_largest_and_percentile_leaves_outliers_out() -> None:
    usual = values(0, 5000)
    usual[0, 0] = 1000
    found = seen(usual)
    assert range_of(found, Observer.MAX, 0) == 1000
    assert 3 < range_of(found, Observer.PERCENTILE, 99.9) < 5


def test_zeros_do_not_narrow_the_range_that_diverges_least() -> None:
    """As behind a ReLU: the other values are what the range is for."""
    values = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    whole, half = Seen(16), Seen(16)
    whole.add(np.abs(values), np.random.default_rng(0))
    half.add(np.maximum(values, 0), np.random.default_rng(0))
    ranges = [range_of(one, Observer.ENTROPY, 99.99) for one in (whole, half)]
    assert ranges[1] > 0.85 * ranges[0]


@pytest.mark.parametrize("observer", [Observer.MSE, Observer.ENTROPY])
def test_searched_ranges_lie_between_the_bulk_and_the_largest(observer: Observer) -> None:
    found = seen(values(0, 20000))
    assert 1 < range_of(found, observer, 0) <= found.limit


def test_the_range_of_least_error_has_less_error_than_the_largest() -> None:
    usual = np.random.default_rng(3).laplace(size=(20000, 8)).astype(np.float32)
    found = seen(usual)

    def error(scale: float) -> float:
        return float(np.square(usual - np.clip(np.rint(usual / scale), -128, 127) * scale).mean())

    assert error(range_of(found, Observer.MSE, 0) / 127) < error(range_of(found, Observer.MAX, 0) / 127)


@pytest.mark.parametrize("observer", list(Observer))
def test_an_activation_that_is_always_zero_has_a_scale(observer: Observer) -> None:
    assert range_of(seen(np.zeros((4, 8), np.float32)), observer, 99) == 1.0


@pytest.mark.parametrize("observer", list(Observer))
def test_a_constant_activation_is_in_its_range(observer: Observer) -> None:
    assert 0.29 < range_of(seen(np.full((4, 8), 0.3, np.float32)), observer, 99) <= 0.3 + 1e-6


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / state.FOLDER / "x.npz"
    found = {(Component.DECODER, "mul_3"): seen(values(1)), (Component.RESAMPLER, "a/b"): seen(values(2))}
    state.save(path, found, 7)
    back, samples = state.load(path)
    assert samples == 7 and back.keys() == found.keys()
    for key, one in found.items():
        require_equal(back[key], one)
        assert (back[key].rows == one.rows).all() and (back[key].keys == one.keys).all()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_state_counts_as_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    assert state.load(path) == ({}, 0)


def test_one_outlier_is_neither_cut_off_nor_followed() -> None:
    """The range of least error lies in between, where no value is."""
    one = Seen(8)
    one.add(np.random.default_rng(0).normal(size=(8000, 8)).astype(np.float32), np.random.default_rng(0))
    one.add(60 * np.eye(1, 8, dtype=np.float32), np.random.default_rng(1))
    assert 10 < range_of(one, Observer.MSE, 99.99) < 55
