"""`vlm-trt profile` as a person runs it."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.test_cli import vlm_trt

QUICK = ("--iterations", 2, "--warmup", 1, "--max-new-tokens", 4, "--backend", "cpu")


@pytest.fixture(scope="module")
def bundle(demo_bundle: Callable[[str], Path]) -> Path:
    return demo_bundle("fp32")


def test_reports_are_written_and_checked_against(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = vlm_trt("profile", bundle, *QUICK, "--batch", "1,2", "-o", out)
    assert done.exit_code == 0, done.stderr
    assert re.search(r"batch 1, 1 image, 4 new tokens +median ms +p90 +p99 +std +floor ms +× floor +limit", done.stdout)
    assert re.search(r"decode_step +\d+\.\d{3} .* (bandwidth|arithmetic|overhead)\n", done.stdout)
    assert "most time in" in done.stdout and "billion operations a second" in done.stdout
    assert re.search(r"output_token_throughput \d+\.\d\d tokens/sec, request_throughput \d+", done.stdout)
    assert re.search(r"decode_step +layer \d.* \d+\.\d{3} +\d+\.\d{3} … \d+\.\d{3} +\d+\.\d%\n", done.stdout)
    assert "parts whose ranges overlap may change places" in done.stdout
    assert f"to {out}" in done.stderr
    names = {path.name for path in out.iterdir()}
    assert names == {"profile.json", "profile.csv", "profile.jsonl", "trace.json", "report.html"}
    assert "<html" in (out / "report.html").read_text()
    written = json.loads((out / "profile.json").read_text())
    rate = written["points"][1]["metrics"]["output_token_throughput"]
    assert set(rate) == {"unit", "avg"} and f"output_token_throughput {rate['avg']:.2f} tokens/sec" in done.stdout
    for point in written["points"]:
        for kind in ("stages", "metrics"):
            for summary in (one for one in point[kind].values() if one["unit"] == "ms"):
                summary |= {"p50": summary["p50"] / 50, "std": 0}
    quick = ("--iterations", 2, "--warmup", 1, "--backend", "cpu", "--no-layers")  # the points are the earlier one's
    (tmp_path / "fast.json").write_text(json.dumps(written))
    slow = vlm_trt("profile", bundle, *quick, "--check", tmp_path / "fast.json", "--allowed", 30)
    assert slow.exit_code == 5 and "slower than the earlier profile: " in slow.stderr
    assert "at batch 1, 1 image, 4 new tokens" in slow.stderr and "at batch 2, 1 image, 4 new tokens" in slow.stderr
    slower = json.dumps(written).replace('"p50": ', '"p50": 9')
    (tmp_path / "slow.json").write_text(slower)
    good = vlm_trt(
        "profile",
        bundle,
        *quick,
        "--batch",
        2,
        "--max-new-tokens",
        4,
        "--check",
        tmp_path / "slow.json",
        "--allowed",
        1000,
    )
    assert good.exit_code == 0, good.stderr
    assert "nothing is slower than the earlier profile by more than 100000% and its noise, at 1 of its 2" in good.stderr
    for options, sentence in (
        (["--stage", "foo"], "there is no stage 'foo' to check; choose from tokenization, preprocess, "),
        (
            ["--batch", 3, "--max-new-tokens", 4],
            "no point 'batch 3, 1 image, 4 new tokens' to check against (it has b",
        ),
    ):
        refused = vlm_trt("profile", bundle, *quick, "--check", tmp_path / "slow.json", *options)
        assert refused.exit_code == 2 and sentence in refused.stderr
        assert "load fp32" not in refused.stderr  # before anything was measured


def test_another_precision_and_the_model_are_compared_with(bundle: Path, demo_bundle: Callable[[str], Path]) -> None:
    done = vlm_trt("profile", bundle, *QUICK, "--no-layers", "--baseline", demo_bundle("fp16"), "--baseline", "torch")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"against .*demo-fp16 in fp16 on onnxruntime-cpu +ms +its ms +its / ours +95 %", done.stdout)
    assert "against torch modules, eager, fp32" in done.stdout and "of the tokens are the same: " in done.stdout
    assert done.stderr.count("load fp32 on") == 1


def test_as_json(bundle: Path) -> None:
    done = vlm_trt("profile", bundle, *QUICK, "--no-layers", "--json")
    assert json.loads(done.stdout)["points"][0]["metrics"]["time_to_first_token"]["unit"] == "ms"


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--batch", "1,x"], 2, "'x' is not a valid integer range. Write whole numbers with commas: 1,2,4"),
        (["--batch", "64"], 2, "a batch of 64 is more than this bundle's 4 sequences"),
        (["--iterations", "0"], 2, "0 is not in the range 1<=x"),
        (["--stage", "prefill"], 2, "--stage says what --check looks at"),
        (["--check", "gone.json"], 2, "gone.json cannot be read"),
        (["--precision", "int8"], 2, "the bundle has no int8 graphs"),
        (["--baseline", "gone"], 7, "gone is not a folder"),
        (["--baseline", "torch", "--batch", "2"], 2, "the torch baseline decodes one request at a time"),
    ],
)
def test_a_mistake_is_one_sentence(options: list[str], code: int, sentence: str, bundle: Path) -> None:
    done = vlm_trt("profile", bundle, "--no-layers", "--iterations", 1, *options)
    assert done.exit_code == code and sentence in done.stderr, done.stderr
    assert "measure what the machine can do" not in done.stderr  # nothing was measured for it


def test_a_missing_torch_is_said_before_anything_is_measured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_trt.profiling.pairing.find_spec", lambda _: None)
    done = vlm_trt("profile", bundle, "--baseline", "torch")
    assert done.exit_code == 4 and "torch is not installed; install the extra export" in done.stderr
    assert "load fp32" not in done.stderr


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = vlm_trt("profile", bundle, "-o", tmp_path / "file")
    assert done.exit_code == 9 and "file is no folder; name another" in done.stderr
    assert "load" not in done.stderr
