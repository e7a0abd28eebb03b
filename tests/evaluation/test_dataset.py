"""Data sets are read strictly: every sentence of refusal, and what an accepted line becomes."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import GOLDEN
from vlm_trt.bundle.errors import DataSetError, ImageError
from vlm_trt.evaluation.dataset import Example, ImageSource, read_data
from vlm_trt.evaluation.metrics import Facts
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.qwen_vl.grounding import parse_answer

PICTURE = GOLDEN / "ntk-256" / "one-image" / "a.png"
LINE: dict[str, Any] = {"images": ["a.png"], "prompt": "Which colour?", "reference": "red", "metric": "exact"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the picture a.png."""
    shutil.copy(PICTURE, tmp_path / "a.png")
    return tmp_path


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def test_a_line_becomes_an_example(folder: Path) -> None:
    full = {
        **LINE,
        "task": "colour",
        "history": [{"user": "Hi", "assistant": "Hello"}],
        "reference": ["red", "crimson"],
    }
    caption = {**LINE, "metric": "caption_facts", "reference": {"present": ["red"], "absent": []}, "images": []}
    data = read_data(write(folder, full, caption), parse_answer)
    assert data.name == "data.jsonl"
    assert data.examples == (
        Example(
            name="data.jsonl:1",
            task="colour",
            prompt="Which colour?",
            reference=("red", "crimson"),
            metric="exact",
            images=(ImageSource("a.png", folder / "a.png"),),
            history=(("Hi", "Hello"),),
        ),
        Example(
            name="data.jsonl:2",
            task="caption_facts",
            prompt="Which colour?",
            reference=Facts(("red",), ()),
            metric="caption_facts",
            images=(),
        ),
    )
    assert data.examples[0].images[0].read() == PICTURE.read_bytes()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("", r"the line is empty; remove it"),
        ("{", r"no JSON that can be read \(Expecting property name.*\); write one object per line"),
        ("[1]", r"\[1\] is no object; every line needs images, prompt, reference, metric"),
        ('{"metric": "exact", "metric": "exact"}', r"the key 'metric' stands twice"),
        ('{"prompt": "\\ud800"}', r"no JSON that can be read \(.*surrogates not allowed\)"),
        ("[" * 5000, r"no JSON that can be read"),
        ({**LINE, "answer": "red"}, "'answer' is unknown; known are images, prompt, reference, metric, task, history"),
        ({"images": [], "prompt": "x"}, "'reference' is missing; every line needs images, prompt, reference, metric"),
        ({**LINE, "metric": "bleu"}, "metric 'bleu' is unknown; choose one of exact, contains, edit_distance, box_iou"),
        ({**LINE, "metric": 1}, "'metric' holds 1; give a text"),
        ({**LINE, "prompt": " "}, "'prompt' holds \" \"; give a text"),
        ({**LINE, "task": None}, "'task' holds null; give a text"),
        ({**LINE, "images": "a.png"}, "'images' is \"a.png\"; give a list of paths of pictures, which may be empty"),
        ({**LINE, "images": [["a.png"]]}, r"'images' holds \[\"a.png\"\]; give a text"),
        ({**LINE, "images": ["b.png"]}, "b.png cannot be read: No such file or directory; give a PNG or JPEG file"),
        ({**LINE, "images": ["."]}, "cannot be read: it is a folder; give a PNG or JPEG file"),
        ({**LINE, "images": ["data.jsonl"]}, "data.jsonl is no picture this version reads"),
        ({**LINE, "images": ["cut.png"]}, "cut.png is damaged or truncated"),
        ({**LINE, "images": ["../a.png"]}, "the picture '../a.png' leaves the folder of the file; copy it into that"),
        ({**LINE, "images": ["/etc/passwd"]}, "the picture '/etc/passwd' leaves the folder"),
        ({**LINE, "images": ["link.png"]}, "the picture 'link.png' leaves the folder"),
        ({**LINE, "images": ["loop.png"]}, "the picture 'loop.png' leaves the folder"),
        ({**LINE, "images": ["a\0.png"]}, "leaves the folder"),
        ({**LINE, "images": ["x" * 400]}, "cannot be read: File name too long"),
        ({**LINE, "history": {}}, "'history' is {}; give a list of turns, which may be empty"),
        ({**LINE, "history": [["a", "b"]]}, 'a turn of history is not {"user": …, "assistant": …}; write'),
        ({**LINE, "history": [{"user": "a", "assistant": 3}]}, "'assistant' holds 3; give a text"),
        ({**LINE, "reference": 3}, "the reference of exact is neither a text nor a list of texts"),
        ({**LINE, "metric": "box_iou"}, "the reference of box_iou holds no place; give text like <ref>"),
        ({**LINE, "metric": "box_iou", "images": []}, "the reference of box_iou holds no place"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named(folder: Path, line: dict[str, Any] | str, sentence: str) -> None:
    (folder / "cut.png").write_bytes(PICTURE.read_bytes()[:200])
    (folder / "link.png").symlink_to("/etc/hostname")
    (folder / "loop.png").symlink_to("loop.png")
    path = write(folder, LINE, line, LINE)
    with pytest.raises(DataSetError, match=rf"^{path}:2: .*({sentence})") as caught:
        read_data(path, parse_answer)
    assert "\n" not in str(caught.value)


def test_a_file_of_other_bytes_is_named_with_its_line(folder: Path) -> None:
    path = folder / "data.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\n")
    with pytest.raises(DataSetError, match=r"data.jsonl:2: byte \d+ is not UTF-8; save the file as UTF-8"):
        read_data(path, parse_answer)


@pytest.mark.parametrize("content", ["", "\n", " \n\n"])
def test_an_empty_file_is_refused(folder: Path, content: str) -> None:
    (folder / "data.jsonl").write_text(content)
    with pytest.raises(DataSetError, match="data.jsonl is empty; write one example per line, as docs/evaluation.md"):
        read_data(folder, parse_answer)


def test_a_folder_is_read_by_its_one_file(folder: Path) -> None:
    with pytest.raises(DataSetError, match=r"holds no \*.jsonl files and no data.jsonl; name the file that is meant"):
        read_data(folder, parse_answer)
    shutil.move(write(folder, LINE), folder / "one.jsonl")
    assert read_data(folder, parse_answer).name == "one.jsonl"
    shutil.copy(folder / "one.jsonl", folder / "two.jsonl")
    with pytest.raises(DataSetError, match=r"holds 2 \*.jsonl files and no data.jsonl"):
        read_data(folder, parse_answer)
    write(folder, LINE)
    assert read_data(folder, parse_answer).name == "data.jsonl"


@pytest.mark.parametrize("path", ["nothing", "/dev/zero"])
def test_a_path_that_is_no_file_is_refused(path: str) -> None:
    with pytest.raises(DataSetError, match=f"{path} is no file and no folder; give a JSONL file, a folder that holds"):
        read_data(Path(path), parse_answer)


def test_windows_files_and_line_separators_inside_a_text_are_read(folder: Path) -> None:
    line = json.dumps({**LINE, "prompt": "a\u2028b"}, ensure_ascii=False)
    (folder / "data.jsonl").write_bytes(f"\ufeff{line}\r\n{line}\r\n".encode())
    assert [one.prompt for one in read_data(folder, parse_answer).examples] == ["a\u2028b"] * 2


def test_the_hash_follows_content_and_not_names(folder: Path) -> None:
    """Another picture, question, reference or order is another set; a renamed picture is not."""
    first = read_data(write(folder, LINE, {**LINE, "prompt": "two"}), parse_answer).sha256
    shutil.copy(PICTURE, folder / "b.png")
    assert (
        read_data(write(folder, {**LINE, "images": ["b.png"]}, {**LINE, "prompt": "two"}), parse_answer).sha256 == first
    )
    others = [
        write(folder, {**LINE, "prompt": "two"}, LINE),
        write(folder, LINE, {**LINE, "prompt": "two", "reference": "blue"}),
        write(folder, LINE, {**LINE, "prompt": "two", "task": "colour"}),
    ]
    shutil.copy(GOLDEN / "ntk-256" / "two-images" / "b.png", folder / "b.png")
    others.append(write(folder, {**LINE, "images": ["b.png"]}, {**LINE, "prompt": "two"}))
    assert first not in {read_data(path, parse_answer).sha256 for path in others}


def test_a_picture_that_vanishes_is_named() -> None:
    with pytest.raises(ImageError, match="gone.png cannot be read: No such file"):
        ImageSource("gone.png", Path("gone.png")).read()


def test_synthetic_examples_come_from_the_scene_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    example = Example(
        name="scene 0", task="colour", prompt="Which?", reference="red", metric="exact",
        images=(ImageSource("s.png", data=PICTURE.read_bytes()),),
    )  # fmt: skip

    def held_out_examples(count: int, seed: int, manner: object) -> Iterator[Example]:
        return (replace(example, prompt=f"{seed}: {i}") for i in range(count))

    scenes = ModuleType("vlm_trt.evaluation.scenes.dataset")
    scenes.held_out_examples = held_out_examples  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vlm_trt.evaluation.scenes.dataset", scenes)
    data = synthetic(3, 7)
    assert [one.prompt for one in data.examples] == ["7: 0", "7: 1", "7: 2"]
    assert data.name == "synthetic, 3 examples, seed 7"
    assert data.sha256 == synthetic(3, 7).sha256 != synthetic(3, 8).sha256
