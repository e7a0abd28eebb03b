"""Ratios, and refusals of what cannot be compared; what became slower."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.profiling.made import iteration, measured
from vlm_trt.bundle.errors import UsageError
from vlm_trt.profiling.check import Slower, read_profile, require_stages, slower
from vlm_trt.profiling.compare import compared, paired, parted_at, require_same_work, same_tokens, what_it_means
from vlm_trt.profiling.metrics import rates, request_metrics, stage_metrics
from vlm_trt.profiling.profile_file import SCHEMA
from vlm_trt.profiling.recorded import recorded


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
    assert (step.mine_ms, step.other_ms) == (pytest.approx(12), pytest.approx(24))  # of one step, not of four
    assert step.ratio == pytest.approx(2) and step.low == step.high == pytest.approx(2)
    assert found["prefill"].ratio == pytest.approx(1) and 1 < found["request_latency"].ratio < 2
    assert {"time_to_first_token", "request_latency"} <= found.keys()


def test_the_same_work_in_fewer_runs_is_compared_whole() -> None:
    """Two prefills of ours beside one of theirs that takes as long as both."""
    mine, other = iteration(10, prefill_ms=50, requests=2), iteration(10, prefill_ms=100)
    pair = (mine, replace(other, requests=other.requests * 2))
    found = {one.stage: one for one in compared("other", measured(10).workload, [pair]).ratios}
    assert found["prefill"].ratio == pytest.approx(1) and found["prefill"].other_ms == pytest.approx(50)


def test_answers_that_differ_are_no_comparison() -> None:
    mine, other = iteration(10), iteration(20)
    changed = replace(other, requests=(replace(other.requests[0], ids=(0, 1, 9, 9, 9)),))
    assert same_tokens(mine, other) == 1 and same_tokens(mine, changed) == pytest.approx(0.4)
    require_same_work(mine, changed, 0.4, "other")
    sentence = (
        r"only 40% of the tokens of other are those of this bundle \(the answers part at token 3\), so this may be "
        "another model, .* of different work; compare the same model, look at the answers with vlm-trt evaluate .*, or"
    )
    with pytest.raises(UsageError, match=sentence):
        require_same_work(mine, changed, 0.9, "other")


def test_what_a_share_of_same_tokens_means_is_said() -> None:
    mine, other = iteration(10), iteration(20)
    changed = replace(other, requests=(replace(other.requests[0], ids=(0, 1, 9, 3)),))
    assert parted_at(mine, other) is None and parted_at(mine, changed) == 3
    assert parted_at(mine, replace(other, requests=(replace(other.requests[0], ids=(0, 1)),))) == 3
    assert what_it_means(1.0, None) == "100.0% of the tokens are the same: both answer alike"
    said = what_it_means(0.19, 7)
    assert said.startswith("19.0% of the tokens are the same: the answers part at token 7. From there on each goes on")
    assert said.endswith("vlm-trt evaluate BUNDLE --data DATA --baseline THE-OTHER")


def profile(*steps_ms: float, batches: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """A document as far as a check looks at it."""
    one = measured(*steps_ms)
    return {
        "schema": SCHEMA,
        "setup": {"precision": "fp32", "backend": "onnxruntime-cpu", "family": "qwen_vl"},
        "environment": {"processor": "one", "gpu": None},
        "points": [
            {
                "workload": asdict(replace(one.workload, batch=batch)),
                "metrics": {name: asdict(found) for name, found in {**request_metrics(one), **rates(one)}.items()},
                "stages": {name: asdict(found) for name, found in stage_metrics(one).items()},
            }
            for batch in batches
        ],
    }


def slower_than(
    now: dict[str, Any], before: dict[str, Any], allowed: float, stages: tuple[str, ...] = ()
) -> list[Slower]:
    return slower(recorded(now), recorded(before), allowed, stages)


def test_what_became_slower_is_named() -> None:
    found = slower_than(profile(13, 13.1, 12.9), profile(10, 10.1, 9.9), 0.05)
    assert {one.name for one in found} == {"decode_step", "inter_token_latency", "request_latency"}
    assert str(found[0]).startswith("decode_step took 13.000 ms instead of 10.000 ms (+30.0%, chance explains 0.")


def test_every_point_is_checked() -> None:
    """The last one alone is slower, and is told; a point that the earlier profile lacks is refused, not left out."""
    now, before = profile(10, 10.1, 9.9, batches=(1, 2, 4)), profile(10, 10.1, 9.9, batches=(1, 2, 4))
    assert not slower_than(now, before, 0.05)
    now["points"][2]["stages"]["decode_step"]["p50"] = 20.0
    (found,) = slower_than(now, before, 0.05)
    assert found.workload.startswith("batch 4, 1 image, 100 prompt tokens")
    sentence = (
        "has no point 'batch 4, 1 image, 100 prompt tokens, 5 new tokens' to check against .it has batch 1, .*; batch 2"
    )
    with pytest.raises(UsageError, match=sentence):
        slower_than(now, profile(10, batches=(1, 2)), 0.05)


def test_only_the_stages_asked_for_are_checked() -> None:
    now, before = profile(13, 13.1, 12.9), profile(10, 10.1, 9.9)
    assert [one.name for one in slower_than(now, before, 0.05, ("decode_step", "prefill"))] == ["decode_step"]
    with pytest.raises(
        UsageError, match="there is no stage 'decoder' to check; choose from prefill, decode_step, time_"
    ):
        require_stages(recorded(before), ("decoder",))


def test_what_chance_explains_or_is_allowed_is_not() -> None:
    assert not slower_than(profile(6, 13, 22), profile(4, 10, 18), 0.05)
    assert not slower_than(profile(10.4, 10.4), profile(10, 10), 0.05)
    assert not slower_than(profile(5, 5), profile(10, 10), 0.0)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("setup", {"precision": "fp16", "backend": "onnxruntime-cpu", "family": "qwen_vl"}, "precision is fp16, this"),
        ("environment", {"processor": "two"}, "is from two and this machine is one; times of two machines say"),
    ],
)
def test_what_cannot_be_checked_is_refused(field: str, value: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        slower_than(profile(10), profile(10) | {field: value}, 0.05)


def damaged(path: str, value: object) -> str:
    """A profile with one value changed, or left out; `path` leads to it."""
    document: Any = profile(10)
    *way, last = path.split("/")
    at = document
    for one in way:
        at = at[int(one) if isinstance(at, list) else one]
    if value is MISSING:
        del at[last]
    else:
        at[last] = value
    return json.dumps(document)


MISSING = object()
STEP = "points/0/stages/decode_step"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON"),
        (json.dumps(profile(10))[:-200], "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no profile that this version reads .it holds no object.; make one"),
        ('{"schema": 1}', "its schema is 1, this version reads"),
        (damaged("setup", MISSING), "'setup' is missing or of a wrong type"),
        (damaged("setup/backend", 1), "'backend' is missing or of a wrong type"),
        (damaged("environment", []), "'environment' is missing"),
        (damaged("environment/processor", None), "'processor' is missing"),
        (damaged("points", {}), "'points' is missing"),
        (damaged("points", []), "points are none"),
        (damaged("points", [[]]), "'workload' is missing"),
        (damaged("points/0/workload/batch", "1"), "'batch' is missing"),
        (damaged("points/0/workload/batch", 10**400), "batch is 1000"),
        (damaged("points/0/workload/new_tokens", True), "'new_tokens' is missing"),
        (damaged("points/0/stages", []), "'stages' is missing"),
        (damaged(STEP, 3), "'unit' is missing"),
        (damaged(f"{STEP}/p50", math.nan), "p50 or std of decode_step is no time"),
        (damaged(f"{STEP}/p50", 10**400), "p50 or std of decode_step is no time"),
        (damaged(f"{STEP}/p50", 0), "p50 or std of decode_step is no time"),
        (damaged(f"{STEP}/std", math.inf), "p50 or std of decode_step is no time"),
        (damaged(f"{STEP}/std", -1), "p50 or std of decode_step is no time"),
        (damaged(f"{STEP}/count", 0), "count is 0"),
        (damaged(f"{STEP}/p50", MISSING), "'p50' is missing"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "old.json").write_text(content)
    with pytest.raises(UsageError, match=sentence):
        read_profile(tmp_path / "old.json")
    (tmp_path / "good.json").write_text(json.dumps(profile(10)))
    assert read_profile(tmp_path / "good.json").points
