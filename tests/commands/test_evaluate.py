"""`vlm-trt evaluate` as a person runs it."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.commands.test_cli import vlm_trt
from tests.evaluation.questions import FOLDER, TOKENS, golden_ids, golden_lines, write_lines
from tests.manifests import edit_manifest
from vlm_trt.commands.evaluate import stated
from vlm_trt.commands.terminal import printable
from vlm_trt.evaluation.dataset import Example, ImageSource
from vlm_trt.evaluation.metrics import Facts, Reference

Bundle = Callable[..., Path]


@pytest.fixture
def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return golden_lines(tmp_path)


@pytest.fixture
def data(tmp_path: Path, lines: list[dict[str, Any]]) -> Path:
    """The golden questions, the last with a wrong reference."""
    return write_lines(tmp_path, [*lines, {**lines[0], "reference": "no\x1b[2J\nway", "task": "wrong"}])


def evaluated(bundle: Path, data: Path, *options: object) -> str:
    done = vlm_trt("evaluate", bundle, "--data", data, "--max-new-tokens", TOKENS, "--backend", "cpu", *options)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_a_table_has_a_row_per_task_and_one_for_all(verified: Bundle, data: Path) -> None:
    done = vlm_trt("evaluate", verified("ntk-256"), "--data", data, "--max-new-tokens", TOKENS)
    assert done.exit_code == 0, done.stderr
    assert [re.split(r"  +", line) for line in done.stdout.splitlines()] == [
        ["task", "metric", "n", "score", "95 % interval", "exact"],
        ["text", "exact", "1", "1.000", "0.207 … 1.000", "1.000"],
        ["pictures", "exact", "3", "1.000", "0.439 … 1.000", "1.000"],
        ["wrong", "exact", "1", "0.000", "0.000 … 0.793", "0.000"],
        ["all", "exact", "5", "0.800", "0.376 … 0.964", "0.800"],
    ]
    assert re.search(r"5 examples of data.jsonl: .*ntk-256 in fp32 on onnxruntime-cpu, \d+\.\d s", done.stderr)
    assert f"5 answers were cut at {TOKENS} tokens; --max-new-tokens allows more" in done.stderr


def test_wrong_answers_are_shown_and_cannot_steer_the_terminal(verified: Bundle, data: Path) -> None:
    shown = evaluated(verified("ntk-256"), data, "--show-wrong", 3).split("\n\n")
    assert len(shown) == 2 and shown[1].startswith("data.jsonl:5  wrong, exact 0.000\n  asked      What colour is")
    assert "  reference  no[2J way\n" in shown[1] and "\x1b" not in shown[1]
    assert printable(shown[1]) == shown[1]


@pytest.mark.parametrize(
    ("reference", "shown"),
    [
        ("red", "red"),
        (("red", "crimson"), "red | crimson"),
        (Facts(("red circle", "star")), "red circle, star"),
        (Facts(("star",), ("a", "b")), "star; not a, b"),
        (Facts(("star",), tuple("abcdefg")), "star; not a, b, c, d, e, … (7 in all)"),
    ],
)
def test_references_of_every_shape_are_shown(reference: Reference, shown: str) -> None:
    assert stated(reference) == shown


def test_the_result_file_is_what_json_prints_and_holds_every_answer(
    verified: Bundle, data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "result.json"
    printed = evaluated(verified("ntk-256"), data, "-o", target, "--json")
    assert printed == target.read_text(encoding="utf-8")
    found = json.loads(printed)
    assert [one["ids"] for one in found["answers"]][:2] == [golden_ids("text"), golden_ids("one-image")]
    assert found["overall"]["score"] == 0.8 and found["comparison"] is None
    assert found["setup"]["precision"] == "fp32" and found["setup"]["verified"] is True
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("least", "code", "sentence"),
    [
        (["0.8", "text=1", "wrong=0"], 0, None),
        (["0.81"], 10, r"^all \(exact\) scored 0.8 and should score 0.81 at least; see .* --show-wrong$"),
        (["0.8", "pictures=1", "wrong=0.5"], 10, r"^wrong \(exact\) scored 0 and should score 0.5 at least; see"),
        (["1", "wrong=1"], 10, r"^all \(exact\) scored 0.8 and .* 1 at least; wrong \(exact\) scored 0 and should"),
    ],
)
def test_too_low_a_score_ends_with_a_code_of_its_own(
    least: list[str], code: int, sentence: str | None, verified: Bundle, data: Path, tmp_path: Path
) -> None:
    """And the result is there all the same."""
    target, options = tmp_path / "result.json", [word for one in least for word in ("--min-score", one)]
    done = vlm_trt(
        "evaluate", verified("ntk-256"), "--data", data, "--max-new-tokens", TOKENS, "--json", "-o", target, *options
    )
    assert done.exit_code == code
    assert json.loads(done.stdout)["overall"]["score"] == 0.8 and done.stdout == target.read_text(encoding="utf-8")
    last = done.stderr.splitlines()[-1].removeprefix("vlm-trt: ")
    assert last == f"wrote {target}" if sentence is None else re.search(sentence, last), last


def test_a_run_agrees_with_itself_and_not_with_one_about_other_pictures(
    verified: Bundle, data: Path, lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    bundle, first, other = verified("ntk-256"), tmp_path / "first.json", tmp_path / "other.json"
    evaluated(bundle, data, "-o", first)
    table = evaluated(bundle, data, "--baseline", first)
    header, *rows = [re.split(r"  +", line) for line in table.splitlines()]
    assert header[6:] == ["baseline", "difference", "95 % interval", "same answers", "same tokens"]
    assert rows[-1][6:] == ["0.800", "+0.000", "+0.000 … +0.000", "100.0%", "100.0%"]

    shutil.copy(tmp_path / "two-images-b.png", tmp_path / "one-image-a.png")
    refused = vlm_trt("evaluate", bundle, "--data", data, "--max-new-tokens", TOKENS, "--baseline", first)
    assert refused.exit_code == 2
    assert re.search(r"first.json is about another data set .*; evaluate the baseline on this data set", refused.stderr)

    evaluated(bundle, data, "-o", other)
    sha256 = json.loads(other.read_text())["data"]["sha256"]
    first.write_text(re.sub(r'"sha256": "\w+"', f'"sha256": "{sha256}"', first.read_text(), count=1))
    found = json.loads(evaluated(bundle, data, "--baseline", first, "--json"))
    pictures = next(task for task in found["comparison"]["tasks"] if task["task"] == "pictures")
    assert pictures["same_answers"] == pytest.approx(2 / 3) and pictures["same_tokens"] < 1
    assert pictures["difference"] == pytest.approx(-1 / 3)


def test_a_bundle_is_a_baseline_too(verified: Bundle, data: Path) -> None:
    """fp16 against fp32; on random weights both choose the same ids here, or part at a near tie."""
    fp32, fp16 = verified("ntk-256"), verified("ntk-256", "fp16")
    found = json.loads(evaluated(fp16, data, "--baseline", fp32, "--baseline-precision", "fp32", "--json"))
    overall = found["comparison"]["overall"]
    assert found["setup"]["precision"] == "fp16" and overall["baseline_score"] == 0.8
    assert " in fp32 on onnxruntime-cpu" in found["comparison"]["baseline"]
    assert 0.5 < overall["same_tokens"] <= 1 and 0 <= overall["same_answers"] <= 1


def test_synthetic_scenes_are_asked(verified: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = ImageSource("scene.png", data=(FOLDER / "one-image" / "a.png").read_bytes())

    def held_out_examples(count: int, seed: int, manner: object) -> Iterator[Example]:
        for at in range(count):
            yield Example(
                name=f"scene {at}", task="colour", prompt=f"Scene {seed}.{at}?", reference="red", metric="contains",
                images=(picture,),
            )  # fmt: skip

    scenes = ModuleType("vlm_trt.evaluation.scenes.dataset")
    scenes.held_out_examples = held_out_examples  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vlm_trt.evaluation.scenes.dataset", scenes)
    found = json.loads(evaluated(verified("ntk-256"), Path("synthetic"), "--count", 4, "--seed", 7, "--json"))
    assert found["data"]["name"] == "synthetic, 4 examples, seed 7"
    assert [one["prompt"] for one in found["answers"]] == ["Scene 7.0?", "Scene 7.1?", "Scene 7.2?", "Scene 7.3?"]


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--min-score", "nan"], 2, "'nan' is no score; write one from 0 to 1, or one of a task: read=0.9"),
        (["--min-score", "text=1.5"], 2, "'text=1.5' is no score; write one from 0 to 1"),
        (["--min-score", "text="], 2, "'text=' is no score"),
        (["--min-score", "sums=1"], 2, "has no task 'sums' for --min-score; choose from all, text, pictures"),
        (["--count", "3"], 2, "--count and --seed are about --data synthetic; leave them out, a file is asked whole"),
        (["--baseline", "nothing.json"], 2, "nothing.json cannot be read: No such file or directory; give a result"),
        (["--baseline", "."], 7, "holds no bundle.json, so it is no bundle"),
        (["--baseline-precision", "fp16"], 2, "--baseline-precision needs a bundle as --baseline; give one, or leave"),
        (["-o", "DATA"], 2, r"\.jsonl would overwrite .*\.jsonl, which is read; choose another file to write"),
        (["-o", "."], 9, r"\. cannot be written: it is a folder; name another file"),
        (
            ["-o", "nowhere/result.json"],
            9,
            "nowhere/result.json cannot be written: there is no .*/nowhere; name a",
        ),
        (["--precision", "bf16"], 2, r"has no bf16 graphs"),
        (["--data", "nothing.jsonl"], 2, "nothing.jsonl is no file and no folder; give a JSONL file"),
        (["--max-new-tokens", "0"], 2, "0 is not in the range 1<=x"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_loaded(
    verified: Bundle, data: Path, options: list[str], code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_trt.runtime.choice.open_engine", lambda *_: pytest.fail("a graph was loaded"))
    named = [str(data) if one == "DATA" else one for one in options]
    done = vlm_trt("evaluate", verified("ntk-256"), "--data", data, *named)
    assert done.exit_code == code and re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_wrong_line_is_refused_before_anything_is_loaded(
    verified: Bundle, lines: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_trt.runtime.choice.open_engine", lambda *_: pytest.fail("a graph was loaded"))
    path = write_lines(tmp_path, [lines[0], {**lines[1], "metric": "bleu"}])
    done = vlm_trt("evaluate", verified("ntk-256"), "--data", tmp_path)
    assert done.exit_code == 2 and f"\nvlm-trt: {path}:2: metric 'bleu' is unknown; choose one" in done.stderr


def test_unverified_graphs_are_refused_unless_accepted(verified: Bundle, data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "unverified"
    shutil.copytree(verified("ntk-256"), bundle)
    edit_manifest(bundle, lambda raw: raw.update(verifications=[]))
    options = ["evaluate", verified("ntk-256"), "--data", data, "--max-new-tokens", 1, "--baseline", bundle]
    refused = vlm_trt(*options)
    assert refused.exit_code == 5 and "the fp32 graphs are not verified, so their answers cannot be" in refused.stderr
    accepted = vlm_trt(*options, "--unverified")
    assert accepted.exit_code == 0 and "warning: fp32 graphs are used without being verified" in accepted.stderr
