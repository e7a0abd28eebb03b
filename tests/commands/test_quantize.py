"""`vlm-trt quantize` as a person runs it, and `vlm-trt verify` of what it made."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.test_cli import vlm_trt


@pytest.fixture
def bundle(demo_bundle: Callable[[str], Path], tmp_path: Path) -> Path:
    shutil.copytree(demo_bundle("fp32"), tmp_path / "bundle")
    return tmp_path / "bundle"


def test_it_says_what_was_saved_and_what_it_cost(bundle: Path) -> None:
    done = vlm_trt("quantize", bundle, "--recipe", "int8-weight", "--count", 20, "--max-drop", 0.3)
    assert done.exit_code == 0, done.stderr
    tasks, layers = done.stdout.split("\n\n")
    assert re.split(r"  +", tasks.splitlines()[0]) == ["task", "n", "before", "after", "difference", "same tokens"]
    last, divergence, seconds = tasks.splitlines()[-3:]
    assert last.startswith("all ")
    assert re.fullmatch(
        r"next-token probabilities along 16 answers: KL 0\.0\d{3} nats per token, largest 0\.\d+", divergence
    )
    assert re.fullmatch(r"the questions took \d+\.\d s before and \d+\.\d s after, on this CPU", seconds)
    assert layers.startswith("furthest of 42 layers") and len(layers.splitlines()) == 9
    assert re.search(
        r"int8-weight: 4\.\d MiB instead of 14\.\d MiB, \d+ s; reports/quantization-int8-weight.json", done.stderr
    )
    assert "Next: vlm-trt generate" in done.stderr
    inspected = vlm_trt("inspect", bundle).stdout
    assert re.search(r"int8-weight +its answers held on onnxruntime-cpu \d{4}-\d\d-\d\d \(score", inspected)


def test_what_was_not_judged_is_judged_by_verify(bundle: Path, tmp_path: Path) -> None:
    done = vlm_trt("quantize", bundle, "--recipe", "int8-weight", "--evaluate", "none")
    assert done.exit_code == 0, done.stderr
    assert f"not judged, so nothing answers from them yet; run: vlm-trt verify {bundle}" in done.stderr
    refused = vlm_trt("generate", bundle, "Hello", "--precision", "int8-weight", "--backend", "cpu")
    assert refused.exit_code == 5 and "int8-weight graphs are not verified" in refused.stderr
    judged = vlm_trt("verify", bundle, "--precision", "int8-weight", "--max-drop", 0.5)
    assert judged.exit_code == 0 and "its answers held: int8-weight, 400 questions" in judged.stderr
    answered = vlm_trt("generate", bundle, "Hello", "--precision", "int8-weight", "--backend", "cpu", "--greedy")
    assert answered.exit_code == 0, answered.stderr


@pytest.fixture
def too_coarse(tmp_path: Path) -> Path:
    """A recipe that cuts activations where half of them lie."""
    recipe = tmp_path / "own.toml"
    recipe.write_text('kind = "int8"\nmax_drop = 0.0\nobserver = "percentile"\npercentile = 50\n')
    return recipe


def test_json_tells_of_a_refusal_too(bundle: Path, too_coarse: Path) -> None:
    done = vlm_trt("quantize", bundle, "--recipe", too_coarse, "--count", 24, "--json")
    assert done.exit_code == 5 and "Nothing is published" in done.stderr, done.stderr
    judged = json.loads(done.stdout)["judged"]
    assert not judged["passed"] and "all together fell" in " ".join(judged["failures"])


@pytest.mark.parametrize("drop", [1e9, float("nan")])
def test_an_edited_report_does_not_let_bad_answers_pass(
    drop: float, bundle: Path, too_coarse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report that says any loss is allowed."""
    monkeypatch.setattr("vlm_trt.commands.quantize.COUNT", 24)
    done = vlm_trt("quantize", bundle, "--recipe", too_coarse, "--evaluate", "none")
    assert done.exit_code == 0, done.stderr
    report = bundle / "reports" / "quantization-int8.json"
    written = json.loads(report.read_text())
    written["recipe"]["max_drop"] = drop
    report.write_text(json.dumps(written))
    judged = vlm_trt("verify", bundle, "--precision", "int8")
    assert judged.exit_code == 5 and "too much worse" in judged.stderr, judged.stderr
    refused = vlm_trt("generate", bundle, "Hello", "--precision", "int8", "--backend", "cpu")
    assert refused.exit_code == 5 and "int8 graphs failed verification" in refused.stderr


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--recipe", "int3"], 2, "there is no recipe int3; give a TOML file, or one of fp8, int4, int8, int8-weight"),
        (["--recipe", "int8", "--samples", "gone.jsonl"], 2, "gone.jsonl is no file and no folder"),
        (["--recipe", "int8", "--evaluate", "gone.jsonl"], 2, "gone.jsonl is no file and no folder"),
        (["--recipe", "int8", "--activations", "fp16"], 2, r"has not all fp16 graphs \(it has fp32\)"),
        (["--recipe", "int8", "--activations", "bf16"], 2, r"has not all bf16 graphs \(it has fp32\)"),
        (["--recipe", "int8", "--max-drop", "2"], 2, "2.0 is not in the range 0<=x<=1"),
    ],
)
def test_a_mistake_is_one_sentence(options: list[str], code: int, sentence: str, bundle: Path) -> None:
    done = vlm_trt("quantize", bundle, *options)
    assert done.exit_code == code and re.search(sentence, done.stderr), done.stderr
    assert not (bundle / "graphs" / "int8").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--evaluate", "x.jsonl"], "--evaluate and --max-drop are about quantized graphs"),
        (
            ["--precision", "int8", "--backend", "cuda"],
            "quantized graphs are judged on the CPU; leave out --backend cuda",
        ),
        (
            ["--precision", "int8"],
            "has no int8 graphs that were quantized; quantize it: vlm-trt quantize .* --recipe int8",
        ),
    ],
)
def test_a_wrong_verification_is_refused(options: list[str], sentence: str, bundle: Path) -> None:
    done = vlm_trt("verify", bundle, *options)
    assert done.exit_code in (2, 7) and re.search(sentence, done.stderr), done.stderr
