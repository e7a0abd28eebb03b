"""`vlm-trt plan` of a fleet, as a person asks for it."""

import json
import math
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.make_checkpoint import write_small_files
from tests.commands.runs import vlm_trt
from tests.conftest import GOLDEN, ROOT
from vlm_trt.families.qwen_vl.config import read_config
from vlm_trt.families.qwen_vl.weights import weight_map

CHECKPOINT = GOLDEN / "ntk-256" / "checkpoint"
ASKED = ("--requests-per-second", 100, "--p99-ttft-ms", 200, "--answer-tokens", 32)
ROOM = ("--ram-gib", 64, "--disk-gib", 100)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--requests-per-second", 3), "--requests-per-second is about a fleet; say with --p99-ttft-ms in which time"),
        (("--p99-ttft-ms", 500), "--p99-ttft-ms is about a fleet; say with --requests-per-second how many it is to"),
        (("--burst", 3), "--burst is about a fleet; say with --requests-per-second how many it is to answer"),
        (
            ("--requests-per-second", 3, "--p99-ttft-ms", 500),
            "--requests-per-second needs to know what a replica takes: name its GPU with --target, or give with "
            "--profile what was measured on one",
        ),
        ((*ASKED, "--profile", "p.json", "--above-floor", 3), "--above-floor is for floors, and --profile says what"),
        ((*ASKED, "--target", "L4", "--prompt-tokens", 200), "--prompt-tokens 200 are fewer than pictures and a"),
        ((*ASKED, "--target", "L4", "--pictures", 2), "prompt and answer have 608 tokens and the cache 320 positions"),
        ((*ASKED, "--target", "L4", "--burst", "nan"), "nan is no finite number"),
        ((*ASKED, "--target", "L4", "--requests-per-second", 0), "0 is not in the range 0.001<=x<=1000000"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[object, ...], sentence: str) -> None:
    positions = ("--max-seq-tokens", 320) if "--pictures" in words else ()
    refused = vlm_trt("plan", CHECKPOINT, *ROOM, *words, *positions)
    assert refused.exit_code == 2 and sentence in refused.stderr, refused.stderr
    assert refused.stdout == ""


def test_a_gpu_that_nobody_has_measured() -> None:
    """Replicas, what they do, on what that rests, and that a death takes one more."""
    words = ("plan", CHECKPOINT, *ROOM, *ASKED, "--target", "L4", "--turns", 3, "--burst", 2)
    done = vlm_trt(*words)
    assert done.exit_code == 0, done.stderr
    assert re.search(
        r"\n100 requests a second, 99 of 100 with their first token in 200 ms and none refused: \d+ L4\n", done.stdout
    )
    assert "2 times the floors of its bytes and operations in fp16, computed and not measured" in done.stdout
    assert "320 prompt tokens, 1 picture among them, and 32 answer tokens on average" in done.stdout
    assert "requests, burst 2, conversations of 3" in done.stdout
    assert re.search(r"\nWhen (it|one of \d+) dies, the \d+\.\d requests that it answers on average", done.stdout)
    fleet = json.loads(vlm_trt(*words, "--json").stdout)["fleet"]
    assert (fleet["replica"], fleet["traffic"]["turns"], fleet["traffic"]["burst"]) == ("L4", 3, 2)
    spared = ", and one may die"
    assert list(fleet["sized"]) == [
        f"{way}{more}"
        for way in ("to the less busy of two", "to the least busy of all", "by prefix, else the least busy")
        for more in ("", spared)
    ]
    usual, spare = (fleet["sized"][name]["replicas"] for name in list(fleet["sized"])[:2])
    assert 1 <= usual <= spare <= usual + 1
    for name, one in fleet["sized"].items():
        assert re.search(rf"^{name} +{one['replicas']} ", done.stdout, re.MULTILINE)


def test_the_page_s_example_is_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of docs/planning.md, over the official sizes and weights that are a hole in a file."""
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    shown = re.findall(r"```text\n(2 requests a second, .*?)```", page, re.DOTALL)
    line = re.findall(r"^vlm-trt (plan Qwen-VL-Chat .*--turns 3)$", page, re.MULTILINE)
    write_small_files(tmp_path / "Qwen-VL-Chat", "FULL")
    header, at = {}, 0
    for name, shape in weight_map(read_config(tmp_path / "Qwen-VL-Chat")).expected.items():
        stop = at + 2 * math.prod(shape)
        header[name], at = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, stop]}, stop
    written = json.dumps(header).encode()
    with (tmp_path / "Qwen-VL-Chat" / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + at)
    monkeypatch.chdir(tmp_path)
    (words,), (expected,) = line, shown
    done = vlm_trt(*words.split(), *ROOM)
    assert done.exit_code == 0 and done.stdout.endswith(f"\n{expected}"), done.output


def test_floors_are_those_of_the_plan() -> None:
    """A step of all sequences takes twice what the table says it takes at least."""
    words = ("plan", CHECKPOINT, *ROOM, *ASKED, "--target", "T4", "--max-batch", 6, "--json")
    found = json.loads(vlm_trt(*words).stdout)
    floor = found["plans"]["fp16"]["floor_ms"]["T4"]
    batch, step_ms = found["fleet"]["costs"]["step_ms"][-1]
    assert batch == 6 and step_ms == pytest.approx(2 * floor, rel=0.01)
    thrice = json.loads(vlm_trt(*words, "--above-floor", 3).stdout)["fleet"]["costs"]
    assert thrice["step_ms"][-1][1] == pytest.approx(3 * floor, rel=0.01)
    assert thrice["picture_ms"] == pytest.approx(1.5 * found["fleet"]["costs"]["picture_ms"])
    assert found["fleet"]["costs"]["picture_ms"] > 0


def test_what_no_number_of_replicas_can_do() -> None:
    fast = vlm_trt("plan", CHECKPOINT, *ROOM, "--target", "L4", *ASKED[:2], "--p99-ttft-ms", 0.001)
    assert fast.exit_code == 8
    least = re.sub(r"0\.\d+ ms;", "0 ms;", fast.stderr)
    assert least == (
        "vlm-trt: 99 of 100 requests cannot have their first token in 0.001 ms: alone on a replica that has nothing "
        "else to do and knows nothing of them they take 0 ms; allow more, or ask with shorter prompts or fewer "
        "pictures\n"
    )
    slow = ("--requests-per-second", 1_000_000, "--above-floor", 1000)
    many = vlm_trt("plan", CHECKPOINT, *ROOM, "--target", "L4", *ASKED, *slow)
    assert many.exit_code == 8 and "1,000,000 requests a second in 200 ms need at least " in many.stderr
    assert "replicas, and at most 256 are simulated; ask for a part of the rate, such as " in many.stderr


def test_what_does_not_fit_a_gpu_is_no_fleet() -> None:
    refused = vlm_trt("plan", CHECKPOINT, *ROOM, *ASKED, "--target", "L4", "--vram-gib", 0.1)
    assert refused.exit_code == 8 and "requests a second" not in refused.output


@pytest.fixture(scope="module")
def profile(exported: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile of one and of three sequences."""
    out = tmp_path_factory.mktemp("profiled") / "report"
    quick = ("--iterations", 2, "--warmup", 1, "--max-new-tokens", 6, "--no-layers", "--backend", "cpu", "--unverified")
    done = vlm_trt("profile", exported("ntk-256"), *quick, "--batch", "1,3", "--prompt-tokens", "320,400", "-o", out)
    assert done.exit_code == 0, done.stderr
    return out / "profile.json"


def test_what_was_measured_on_a_replica(exported: Callable[..., Path], profile: Path) -> None:
    asked = ("--requests-per-second", 0.5, "--p99-ttft-ms", 60_000, "--answer-tokens", 8, "--profile", profile)
    done = vlm_trt("plan", exported("ntk-256"), "--precision", "fp32", *ROOM, *asked)
    assert done.exit_code == 0, done.stderr
    assert re.search(r"0\.5 requests a second, .* and none refused: \d+ replicas\n", done.stdout)
    assert f"as {profile} measured it on " in done.stdout and ": onnxruntime-cpu, fp32\n" in done.stdout
    assert "3 sequences at once" in done.stdout
    assert "Requests of one turn share nothing, so that sending them by prefix changes nothing" in done.stdout


def test_a_profile_of_something_else_is_refused(exported: Callable[..., Path], profile: Path, tmp_path: Path) -> None:
    """Another family, another machine, fewer sequences; no pictures, nothing, no JSON, no file."""
    found = json.loads(profile.read_text())
    blind = [point | {"workload": point["workload"] | {"images": 0}} for point in found["points"]]
    texts = {
        "llava": json.dumps(found | {"setup": found["setup"] | {"family": "llava15"}}),
        "blind": json.dumps(found | {"points": blind}),
        "empty": json.dumps(found | {"points": []}),
        "broken": "{",
        "whole": json.dumps(found),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    for name, more, sentence in (
        ("llava", (), "is of a llava15 and qwen_vl is planned; give a profile of this model"),
        ("whole", ("--target", "L4"), "was measured on a CPU and --target is a GPU; leave out one of them"),
        (
            "whole",
            ("--max-batch", 8),
            "measured 3 sequences together and a replica answers 8; profile with --batch 1,8",
        ),
        ("blind", (), "measured no pictures; profile with --images 1, or plan with --pictures 0"),
        ("empty", (), "does not say what a replica takes (points are none); make one: vlm-trt profile BUNDLE"),
        ("broken", (), "is no JSON ("),
        ("missing", (), "cannot be read: No such file or directory; give a profile's JSON file"),
    ):
        done = vlm_trt("plan", exported("ntk-256"), *ROOM, *ASKED, "--profile", tmp_path / name, *more)
        assert done.exit_code == 2 and f"{tmp_path / name} {sentence}" in done.stderr, done.output
