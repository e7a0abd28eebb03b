"""A small data set whose right answers are what the original implementation recorded, and runs made by hand."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import GOLDEN, arrays
from tests.runtime.sequences import TOKENIZER
from vlm_trt.evaluation.dataset import DataSet, Example, ImageSource, read_data
from vlm_trt.evaluation.evaluate import Evaluation, Judged, summed_up
from vlm_trt.families.qwen_vl.grounding import parse_answer

TOKENS = 24
FOLDER = GOLDEN / "ntk-256"
# Golden case → its pictures, earlier turns and question.
_CASES: dict[str, tuple[list[str], list[dict[str, str]], str]] = {
    "text": ([], [], "What colour is the circle?"),
    "one-image": (["a.png"], [], "Describe the picture in one sentence."),
    "two-images": (["a.png", "b.png"], [], "图中有几个三角形？"),
    "multi-turn-box": (
        ["n.png"],
        [{"user": "Where is the small yellow star?", "assistant": "<ref>star</ref><box>(120,340),(560,780)</box>"}],
        "And the red circle?",
    ),
}


def golden_ids(case: str) -> list[int]:
    """The first ids that the original generated."""
    ids: list[int] = arrays(FOLDER / case / "case.npz")["generated"].tolist()
    return ids[:TOKENS]


def golden_lines(folder: Path) -> list[dict[str, Any]]:
    """The cases as lines of a data set, their pictures copied into the folder."""
    lines = []
    for case, (pictures, history, prompt) in _CASES.items():
        names = [f"{case}-{name}" for name in pictures]
        for name, picture in zip(names, pictures, strict=True):
            shutil.copy(FOLDER / case / picture, folder / name)
        text = b"".join(TOKENIZER.visible_bytes(i) for i in golden_ids(case)).decode("utf-8", "replace")
        line = {"images": names, "prompt": prompt, "reference": text, "metric": "exact", "history": history}
        lines.append({**line, "task": "pictures" if pictures else "text"})
    return lines


def write_lines(folder: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def golden_data(folder: Path) -> DataSet:
    return read_data(write_lines(folder, golden_lines(folder)), parse_answer)


def example(name: str, task: str = "colour", prompt: str = "Which?", images: tuple[ImageSource, ...] = ()) -> Example:
    return Example(name=name, task=task, prompt=prompt, reference="red", metric="exact", images=images)


def run_of(*answers: tuple[str, tuple[int, ...], float]) -> Evaluation:
    """A run made by hand, of tasks, ids and scores."""
    judged = tuple(
        Judged(example(f"made:{at}", task), "", ids, score, 1.0, "stop", 0)
        for at, (task, ids, score) in enumerate(answers)
    )
    return summed_up(judged, seconds=1.0)
