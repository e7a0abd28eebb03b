"""Samples that could tell nothing are refused, and those that judge are not those that were looked at."""

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from vlm_trt.bundle.config import ChatFormat
from vlm_trt.bundle.errors import DataSetError
from vlm_trt.calibration.samples import LEAST_SAMPLES, checked, find_samples, require_apart, with_tokens
from vlm_trt.evaluation.dataset import SYNTHETIC, ImageSource, Sample
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.messages import Image as ImagePart
from vlm_trt.families.messages import ImageSpan, Message, Prompt, Text


def picture(number: int) -> ImageSource:
    data = BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(data, "PNG")
    return ImageSource(f"{number}.png", data=data.getvalue())


def samples(count: int, pictures: int) -> tuple[Sample, ...]:
    """So many samples, which have so many different pictures among them."""
    return tuple(
        Sample(name=str(at), prompt=f"What is {at}?", images=(picture(at % pictures),) if pictures else ())
        for at in range(count)
    )


@pytest.mark.parametrize(
    ("count", "pictures", "sentence"),
    [
        (3, 3, "own holds 3 samples; .* give at least 16"),
        (20, 0, "no sample of own has a picture, so vision would be calibrated on nothing"),
        (20, 1, "own holds 1 different pictures in 20 places; give more that differ"),
        (40, 12, "own holds 12 different pictures in 40 places"),
    ],
)
def test_what_cannot_serve_is_refused(count: int, pictures: int, sentence: str) -> None:
    with pytest.raises(DataSetError, match=sentence):
        checked("own", samples(count, pictures))


def test_what_is_asked_later_must_not_have_been_seen() -> None:
    seen, asked = checked("own", samples(20, 20)), (Sample(name="q:1", prompt="?", images=(picture(3),)),)
    with pytest.raises(
        DataSetError, match="q:1 of questions asks about a picture that is among the samples; calibrate"
    ):
        require_apart(seen.pictures, asked, "questions")
    require_apart(seen.pictures, (Sample(name="q:1", prompt="What is 3?", images=(picture(99),)),), "questions")


def test_the_drawn_samples_are_none_of_the_drawn_questions() -> None:
    found = find_samples(SYNTHETIC)
    require_apart(found.pictures, synthetic(200, 0).examples, SYNTHETIC)
    assert found.coverage["pictures of a sample"].keys() == {"1", "2"}
    assert found.coverage["writing"].keys() == {"Han", "other"}
    assert found.sha256 == find_samples(SYNTHETIC).sha256


def test_samples_are_read_from_a_file(tmp_path: Path) -> None:
    lines = []
    for at in range(LEAST_SAMPLES):
        (tmp_path / f"{at}.png").write_bytes(picture(at).read())
        lines.append({"images": [f"{at}.png"], "prompt": "What is it?", **({"answer": "red"} if at % 2 else {})})
    file = tmp_path / "samples.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = find_samples(str(file))
    assert found.coverage["answer"] == {"the model's own": 8, "given": 8}
    assert found.samples[1].answer == "red" and found.samples[0].answer is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ({"images": []}, "'prompt' is missing; every line needs images, prompt"),
        ({"images": [], "prompt": "x", "answr": "y"}, "'answr' is unknown"),
        ({"images": ["gone.png"], "prompt": "x"}, "gone.png"),
        ({"images": [], "prompt": "x", "answer": ""}, "'answer' holds \"\"; give a text"),
    ],
)
def test_a_wrong_line_is_named(line: dict[str, object], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps(line))
    with pytest.raises(DataSetError, match=f"samples.jsonl:1: .*{sentence}"):
        find_samples(str(file))


def test_what_the_prompts_are_made_of_is_told() -> None:
    def build(turns: Sequence[Message]) -> Prompt:
        (picture, text) = turns[0].parts
        assert isinstance(picture, ImagePart) and isinstance(text, Text)
        words = len(text.text.split())
        return Prompt(tuple(range(4 + words)), (ImageSpan(0, 4, 0),), ())

    found = with_tokens(checked("own", samples(20, 20)), ChatFormat.CHATML, build)
    assert found.coverage["tokens of the prompts"] == {"visual": 80, "text": 60}
    assert found.coverage["tokens of a prompt"] == {"fewest": 7, "median": 7, "most": 7}
    assert found.summary() == (
        "own: 20 samples with 20 pictures, 0 asked in Chinese; prompts of 7 to 7 tokens, 57% of them visual"
    )
