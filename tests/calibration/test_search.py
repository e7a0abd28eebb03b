"""The fewest layers in float: found in few attempts, and never fewer than suffice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_trt.bundle.errors import VerificationError
from vlm_trt.calibration.attempt import Attempt
from vlm_trt.calibration.divergence import Divergence
from vlm_trt.calibration.gate import Verdict
from vlm_trt.calibration.recipe import Kind
from vlm_trt.calibration.rewrite import LayerError
from vlm_trt.calibration.search import fewest_kept
from vlm_trt.evaluation.baseline import Comparison, Difference
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.intervals import Interval

NOTHING = Comparison("", (), Difference("all", "", 1, 1.0, 0.0, Interval(0, 0, "wilson"), None, None))


@given(st.integers(1, 60), st.data())
def test_as_many_as_suffice_and_no_more(layers: int, data: st.DataObject) -> None:
    needed = data.draw(st.integers(0, layers))
    errors = tuple(LayerError(f"layer {at}", Kind.INT8, float(at), 4, 1) for at in range(layers))
    said: list[str] = []

    def try_with(kept: frozenset[str]) -> Attempt:
        assert kept == {f"layer {at}" for at in range(layers - len(kept), layers)}, "the largest error first"
        failures = () if len(kept) >= needed else ("all fell",)
        return Attempt((), errors, Verdict(NOTHING, Divergence(0.0, 0.0, 1, 1), failures, DataSet("", "", ()), 0.0))

    if needed == layers:
        with pytest.raises(VerificationError, match="the answers hold only with every layer in float"):
            fewest_kept(try_with, said.append)
        return
    found, verdict = fewest_kept(try_with, said.append)
    assert len(found) == needed and verdict.passed
    assert len(said) <= 2 * layers.bit_length() + 1
    if needed:
        assert said[0] == (
            f"0 of {layers} layers in float: 0.0 MiB, the questions took 0.0 s; the answers do not (all fell)"
        )
