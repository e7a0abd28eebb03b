"""Figures from measurements whose times are known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.profiling.made import measured
from vlm_trt.profiling.metrics import decode_by_position, rates, request_metrics, stage_metrics, typical, waterfall
from vlm_trt.profiling.statistics import summary


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=50))
def test_a_summary_is_numpys(values: list[float]) -> None:
    found = summary(values, "ms")
    assert found.count == len(values) and found.min <= found.p50 <= found.p90 <= found.p99 <= found.max
    assert found.avg == pytest.approx(np.mean(values)) and found.p95 == pytest.approx(np.percentile(values, 95))
    assert found.std == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0.0)


def test_latencies_follow_their_formulas() -> None:
    """Two requests: the second waits for the first one's prefill."""
    found = request_metrics(measured(10, 20, requests=2))
    first = found["time_to_first_token"]
    assert (first.unit, first.count, first.min, first.max) == ("ms", 4, pytest.approx(50), pytest.approx(100))
    assert found["request_latency"].min == pytest.approx(140) and found["request_latency"].max == pytest.approx(180)
    gaps = [(140 - 50) / 4, (140 - 100) / 4, (180 - 50) / 4, (180 - 100) / 4]
    assert found["inter_token_latency"].avg == pytest.approx(np.mean(gaps))
    assert found["output_sequence_length"].avg == 5 and found["input_sequence_length"].avg == 100


def test_a_throughput_is_all_of_it_over_all_the_seconds() -> None:
    """Neither the mean nor the median of iterations: of 10 tokens in 140 ms and 10 in 180 ms."""
    found = rates(measured(10, 20, requests=2))
    assert {name: (one.unit, one.avg) for name, one in found.items()} == {
        "output_token_throughput": ("tokens/sec", pytest.approx(20 / 0.320)),
        "request_throughput": ("requests/sec", pytest.approx(4 / 0.320)),
        "image_throughput": ("images/sec", pytest.approx(4 / 0.320)),
    }
    assert not found.keys() & request_metrics(measured(10, 20, requests=2)).keys()


def test_a_shared_step_counts_once() -> None:
    found = stage_metrics(measured(10, 20, requests=2))
    assert list(found) == ["prefill", "decode_step"]
    assert found["decode_step"].count == 8 and found["prefill"].count == 4
    assert found["decode_step"].avg == pytest.approx(15)


def test_one_token_has_no_gap() -> None:
    from dataclasses import replace

    whole = measured(10)
    request = whole.iterations[0].requests[0]
    alone = replace(whole.iterations[0], requests=(replace(request, tokens=request.tokens[:1]),))
    assert "inter_token_latency" not in request_metrics(replace(whole, iterations=(alone,)))


def test_steps_by_position() -> None:
    assert decode_by_position(measured(10, 20, 12)) == [(100 + at, pytest.approx(12)) for at in range(4)]


def test_the_waterfall_is_of_the_typical_iteration() -> None:
    spans = list(waterfall(typical(measured(10, 30, 20, requests=2).iterations)))
    assert [number for number, _ in spans] == [0, 0, 0, 0, 0, 1]
    assert {round(span.seconds * 1000) for _, span in spans if span.stage == "decode_step"} == {20}
