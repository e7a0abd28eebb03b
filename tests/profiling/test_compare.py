"""Ratios, and refusals of what cannot be compared; what became slower."""

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.profiling.made import iteration, measured
from vlm_trt.bundle.errors import UsageError
from vlm_trt.profiling.check import read_profile, slower
from vlm_trt.profiling.compare import compared, paired, require_same_work, same_tokens
from vlm_trt.profiling.metrics import request_metrics, stage_metrics


def test_runs_take_turns() -> None:
    order: list[str] = []

    def run(name: str, step: float):  # type: ignore[no-untyped-def]
        def once():  # type: ignore[no-untyped-def]
            order.append(name)
            return iteration(step)

        return once

    pairs = paired(run("a", 10), run("b", 20), 3, warmup=1)
    assert order == ["a", "b"] * 4 and len(pairs) == 3


def test_the_ratio_of_pairs_and_its_interval() -> None:
    """A machine that becomes slower slows both: the ratio stays."""
    pairs = [(iteration(step), iteration(2 * step)) for step in (10, 11, 12, 30, 31)]
    found = {one.stage: one for one in compared("other", measured(10).workload, pairs).ratios}
    step = found["decode_step"]
    assert (step.mine_ms, step.other_ms) == (pytest.approx(48), pytest.approx(96))
    assert step.ratio == pytest.approx(2) and step.low == step.high == pytest.approx(2)
    assert found["prefill"].ratio == pytest.approx(1) and 1 < found["request_latency"].ratio < 2
    assert {"time_to_first_token", "request_latency"} <= found.keys()


def test_answers_that_differ_are_no_comparison() -> None:
    mine, other = iteration(10), iteration(20)
    changed = replace(other, requests=(replace(other.requests[0], ids=(0, 1, 9, 9, 9)),))
    assert same_tokens(mine, other) == 1 and same_tokens(mine, changed) == pytest.approx(0.4)
    require_same_work(mine, changed, 0.4, "other")
    with pytest.raises(UsageError, match="only 40% of the tokens of other are those of this bundle, .*different work"):
        require_same_work(mine, changed, 0.9, "other")


def profile(*steps_ms: float) -> dict[str, Any]:
    """A document as far as a check looks at it."""
    one = measured(*steps_ms)
    return {
        "schema": 1,
        "setup": {"precision": "fp32", "backend": "onnxruntime-cpu", "family": "qwen_vl"},
        "environment": {"processor": "one", "gpu": None},
        "points": [
            {
                "workload": asdict(one.workload),
                "label": one.workload.label,
                "metrics": {name: asdict(summary) for name, summary in request_metrics(one).items()},
                "stages": {name: asdict(summary) for name, summary in stage_metrics(one).items()},
            }
        ],
    }


def test_what_became_slower_is_named() -> None:
    found = slower(profile(13, 13.1, 12.9), profile(10, 10.1, 9.9), 0.05)
    assert {one.name for one in found} == {"decode_step", "inter_token_latency", "request_latency"}
    assert str(found[0]).startswith("decode_step took 13.000 ms instead of 10.000 ms (+30.0%, chance explains 0.")


def test_only_the_stages_asked_for_are_checked() -> None:
    now, before = profile(13, 13.1, 12.9), profile(10, 10.1, 9.9)
    assert [one.name for one in slower(now, before, 0.05, ("decode_step", "prefill"))] == ["decode_step"]
    with pytest.raises(
        UsageError, match="there is no stage 'decoder' to check; choose from prefill, decode_step, time_"
    ):
        slower(now, before, 0.05, ("decoder",))


def test_what_chance_explains_or_is_allowed_is_not() -> None:
    assert not slower(profile(6, 13, 22), profile(4, 10, 18), 0.05)
    assert not slower(profile(10.4, 10.4), profile(10, 10), 0.05)
    assert not slower(profile(5, 5), profile(10, 10), 0.0)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("setup", {"precision": "fp16", "backend": "onnxruntime-cpu", "family": "qwen_vl"}, "precision is fp16, this"),
        ("environment", {"processor": "two"}, "is from two and this machine is one; times of two machines say"),
        ("points", [], "no workload of the earlier profile was measured"),
    ],
)
def test_what_cannot_be_checked_is_refused(field: str, value: Any, sentence: str) -> None:
    before = copy.deepcopy(profile(10)) | {field: value}
    with pytest.raises(UsageError, match=sentence):
        slower(profile(10), before, 0.05)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        ("[]", "is no profile"),
        ('{"schema": 9}', "is no pr"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        read_profile(tmp_path / "old.json")
    (tmp_path / "good.json").write_text(json.dumps(profile(10)))
    assert read_profile(tmp_path / "good.json")["points"]
