"""A result as a document: what is written is read back, and nothing else is."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.questions import run_of
from vlm_trt.bundle.errors import UsageError
from vlm_trt.evaluation.baseline import compare
from vlm_trt.evaluation.dataset import DataSet
from vlm_trt.evaluation.result import Result, Setup, as_baseline, document, dumps, read_baseline

RUN = run_of(("colour", (1, 2), 1.0), ("count", (3,), 0.25))
SETUP = Setup("bundle", "qwen_vl", ("decoder:a:b",), "t" * 64, "fp32", "onnxruntime-cpu", True, 4, 64)
RESULT = Result(DataSet("data.jsonl", "a" * 64, tuple(one.example for one in RUN.answers)), SETUP, RUN)


def test_a_written_result_is_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(dumps(document(RESULT)))
    read, made = read_baseline(path), as_baseline(RESULT)
    assert read.label == str(path) and made.label == "bundle in fp32 on onnxruntime-cpu"
    assert read.answers == made.answers and read.data_sha256 == made.data_sha256
    assert (read.max_new_tokens, read.tokenizer_sha256) == (64, "t" * 64)


def test_the_document_says_what_was_asked_of_what() -> None:
    compared = Result(RESULT.data, SETUP, RUN, compare(RUN, "t" * 64, as_baseline(RESULT)))
    text = dumps(document(compared))
    found = json.loads(text)
    assert found["data"] == {"name": "data.jsonl", "sha256": "a" * 64, "examples": 2}
    assert found["setup"]["graphs"] == ["decoder:a:b"] and found["setup"]["verified"] is True
    assert {"processor", "cores", "packages", "gpu"} <= set(found["environment"])
    assert [task["task"] for task in found["tasks"]] == ["colour", "count"]
    assert found["comparison"]["overall"]["same_tokens"] == 1
    first = found["answers"][0]
    assert (first["name"], first["ids"], first["score"], first["reference"]) == ("made:0", [1, 2], 1.0, "red")
    assert sum(line.startswith('  {"name": "made:') for line in text.splitlines()) == 2


def broken(**changes: Any) -> str:
    return json.dumps({**document(RESULT), **changes})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{",
            r"is no result that this version reads \(Expecting.*\); make one: vlm-trt evaluate BUNDLE --data DATA -o",
        ),
        ("[]", "'schema' is missing or of a wrong type"),
        (broken(schema=9), "its schema is 9, this version reads 1"),
        (broken(data=None), "'data' is missing or of a wrong type"),
        (broken(setup={}), "'tokenizer_sha256' is missing or of a wrong type"),
        (broken(answers=[{"ids": [1]}]), "'score' is missing or of a wrong type"),
        (broken(answers=[{"ids": [1.5], "score": 1}]), "an answer's ids or score are not what they should be"),
        (broken(answers=[{"ids": [1], "score": float("nan")}]), "an answer's ids or score are not what they should be"),
        ("[" * 5000, "is no result that this version reads"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"{path} is no result that this version reads.*make one: vlm-trt evaluate"):
        read_baseline(path)
    with pytest.raises(UsageError, match=sentence):
        read_baseline(path)


def test_a_missing_baseline_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing.json cannot be read: No such file or directory; give a result file"):
        read_baseline(Path("nothing.json"))
