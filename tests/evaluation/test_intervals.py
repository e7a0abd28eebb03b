"""Confidence intervals against published and textbook values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.evaluation.intervals import bootstrap, interval, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe, 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_values(right: int, n: int, low: float, high: float) -> None:
    found = wilson(right, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    right, n = counts
    found, mirrored = wilson(right, n), wilson(n - right, n)
    assert 0 <= found.low <= right / n <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low))


def test_the_bootstrap_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.1, size=400).clip(0, 1)
    found, half = bootstrap(values.tolist(), 0, 1), 1.96 * values.std() / math.sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-3)
    assert found == bootstrap(values.tolist(), 0, 1)


def test_the_method_follows_the_scores() -> None:
    assert interval([0.0, 1.0, 1.0]).method == "wilson"
    assert interval([0.0, 0.5, 1.0]).method == "bootstrap"
    lone = interval([0.5])
    assert (lone.low, lone.high, lone.method) == (0, 1, "unknown")


def test_equal_values_leave_no_width() -> None:
    assert bootstrap([0.25] * 5, -1, 1).low == bootstrap([0.25] * 5, -1, 1).high == 0.25


def test_many_examples_fit_in_little_memory() -> None:
    found = bootstrap([0.0, 0.5] * 5000, 0, 1)
    assert found.low < 0.25 < found.high and found.high - found.low < 0.02
