"""`vlm-trt evaluate --images`: the demo model's boxes scored as COCO has it, and gone on with where a run was ended."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.commands.runs import vlm_trt
from tests.conftest import ROOT
from vlm_trt.bundle.errors import StorageError
from vlm_trt.commands import evaluate_coco

SCENE = ROOT / "examples" / "demo_model" / "scene.png"
STARS = [[40, 60, 160, 160], [500, 460, 100, 100]]  # as README shows them


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The demo's scene and its mirror image: their stars, a name that is in neither, and one that is not asked for."""
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(SCENE, folder / "a.png")
    with Image.open(SCENE) as picture:
        width, height = picture.size
        picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    mirrored = [[width - left - wide, top, wide, high] for left, top, wide, high in STARS]
    boxes = [(1, box) for box in STARS] + [(2, box) for box in mirrored]
    raw = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name in ((2, "b.png"), (1, "a.png"))
        ],
        "categories": [{"id": 3, "name": "stars"}, {"id": 5, "name": "blue triangles"}, {"id": 8, "name": "numbers"}],
        "annotations": [
            {"id": at, "image_id": picture, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for at, (picture, box) in enumerate(boxes, 1)
        ],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(raw))
    return path


def words(bundle: Path, data: Path, *more: object) -> list[object]:
    return ["evaluate", bundle, "--data", data, "--images", data.parent / "photos", "--names", "stars,blue triangles",
            "-o", data.with_name("ap.json"), *more]  # fmt: skip


def test_boxes_are_scored(demo_bundle: Callable[[str], Path], data: Path) -> None:
    bundle, output = demo_bundle("fp32"), data.with_name("ap.json")
    done = vlm_trt(*words(bundle, data, "--min-score", 0.5, "--min-score", "IoU=0.5"))
    assert done.exit_code == 0, done.stderr
    rows = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    result = json.loads(output.read_text())
    figures = result["figures"]
    assert rows == {"figure": "value"} | {
        name: "–" if value is None else f"{value:.3f}" for name, value in figures.items()
    }
    assert figures["AP50"] == pytest.approx(1) and figures["AP"] > 0.8 and figures["IoU"] > 0.9
    assert figures["APs"] is None and figures["APl"] == pytest.approx(figures["AP"])
    assert result["by_category"] == {"stars": pytest.approx(figures["AP"]), "blue triangles": None}
    assert result["questions"]["all"] == 4 and result["questions"]["present"] == result["questions"]["absent"] == 2
    assert result["question"] == "Find all {name}." and result["setup"]["precision"] == "fp32"
    assert re.search(
        r"2 names about 2 pictures of instances.json: .* in fp32 on onnxruntime-cpu, \d+\.\d s", done.stderr
    )
    assert "the model gives no scores, so every box has 1" in done.stderr
    assert not output.with_name("ap.json.part").exists()
    assert elsewhere(data, result["results"]) == pytest.approx(figures["AP"])


def elsewhere(data: Path, results: list[dict[str, Any]]) -> float:
    """AP as anybody gets it from the files, by pycocotools' own way."""
    wanted = COCO(str(data))
    judged = COCOeval(wanted, wanted.loadRes(results), "bbox")
    judged.params.catIds = [3, 5]
    judged.evaluate()
    judged.accumulate()
    judged.summarize()
    return float(judged.stats[0])


def test_a_run_that_was_ended_goes_on(
    demo_bundle: Callable[[str], Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one is told of it, and nothing is written until all is known."""
    bundle, output = demo_bundle("fp32"), data.with_name("ap.json")

    def ended(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_coco, "box_scores", ended)
        assert vlm_trt(*words(bundle, data)).exit_code == 9
    journal = output.with_name("ap.json.part")
    assert not output.exists() and len(journal.read_text().splitlines()) == 3
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    other = vlm_trt(*words(bundle, data, "--max-new-tokens", 20))
    assert other.exit_code == 2 and "is of another run" in other.stderr and not output.exists()
    done = vlm_trt(*words(bundle, data, "--json"))
    assert done.exit_code == 0 and "1 pictures are known from an earlier run" in done.stderr
    assert done.stdout == output.read_text() and not journal.exists()
    again = vlm_trt(*words(bundle, data))
    assert again.exit_code == 0
    assert json.loads(done.stdout)["results"] == json.loads(output.read_text())["results"]


def test_less_than_was_asked_for_ends_with_10(demo_bundle: Callable[[str], Path], data: Path) -> None:
    least = ("--count", 1, "--max-new-tokens", 10, "--min-score", 0.5, "--min-score", "APs=0.1")
    done = vlm_trt(*words(demo_bundle("fp32"), data, *least))
    assert done.exit_code == 10, done.stderr
    assert "vlm-trt: AP is 0 and should be 0.5 at least; APs is about nothing in these pictures" in done.stderr
    assert "2 answers were cut at 10 tokens; --max-new-tokens allows more" in done.stderr
    assert "gives no scores" not in done.stderr  # there is no box
    assert json.loads(data.with_name("ap.json").read_text())["data"]["pictures"] == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--seed", 0), "--seed is not for COCO annotations; leave it out with --images"),
        (("--baseline", "fp16"), "--baseline is not for COCO annotations"),
        (("--baseline-precision", "fp16"), "--baseline-precision is not for COCO annotations"),
        (("--show-wrong", 1), "--show-wrong is not for COCO annotations"),
        (("--min-score", "AP60=0.1"), "there is no figure 'AP60' for --min-score; choose from all, AP, AP50"),
        (("--names", "dogs"), "instances.json has no category 'dogs'; it has stars, blue triangles, numbers"),
        (("-o", "-"), "--images needs a file for the result, beside which answers are kept; name it with -o"),
        (("--images", SCENE), "scene.png is no folder; give the one that the pictures of"),
        (("-o", "instances.json"), "would overwrite"),
    ],
)
def test_what_is_refused(
    more: tuple[object, ...], sentence: str, demo_bundle: Callable[[str], Path], data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(data.parent)
    done = vlm_trt(*words(demo_bundle("fp32"), data, *more))
    assert done.exit_code == 2 and sentence in done.stderr, done.stderr
    assert {path.name for path in data.parent.iterdir()} == {"photos", "instances.json"}


def test_a_picture_of_another_size_is_refused_before_a_question(demo_bundle: Callable[[str], Path], data: Path) -> None:
    Image.new("RGB", (20, 30)).save(data.parent / "photos" / "b.png")
    done = vlm_trt(*words(demo_bundle("fp32"), data))
    assert done.exit_code == 2 and "b.png is 20×30 pixels, and picture 2 is said to be 640×640" in done.stderr
    assert {path.name for path in data.parent.iterdir()} == {"photos", "instances.json"}


def test_a_picture_that_cannot_be_asked_about_ends_it(demo_bundle: Callable[[str], Path], data: Path) -> None:
    """Left out it would make the figures better; the same command says the same again."""
    raw = json.loads(data.read_text())
    raw["categories"][0]["name"] = "star " * 3000
    data.write_text(json.dumps(raw))
    for _ in range(2):
        done = vlm_trt("evaluate", demo_bundle("fp32"), "--data", data, "--images", data.parent / "photos",
                       "-o", data.with_name("ap.json"))  # fmt: skip
        assert done.exit_code == 2 and not data.with_name("ap.json").exists()
        assert re.search(r"vlm-trt: a.png cannot be asked about: .*; leave it out of the annotations, or", done.stderr)
        assert "(what was answered is in " in done.stderr


def test_what_is_for_annotations_is_not_for_questions(demo_bundle: Callable[[str], Path]) -> None:
    done = vlm_trt("evaluate", demo_bundle("fp32"), "--data", "synthetic", "--names", "stars")
    assert done.exit_code == 2 and "--names is about COCO annotations; give the folder of their" in done.stderr


def test_a_model_that_was_not_taught_says_so(exported: Callable[..., Path], data: Path) -> None:
    done = vlm_trt(*words(exported("llava15"), data, "--unverified"))
    assert done.exit_code == 4 and "LLaVA-1.5 cannot answer with boxes" in done.stderr
