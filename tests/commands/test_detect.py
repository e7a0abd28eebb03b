"""`vlm-trt detect` and `point`: the demo model finds what was drawn, a folder becomes COCO, and who cannot says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.commands.runs import vlm_trt
from tests.conftest import ROOT
from vlm_trt.bundle.errors import StorageError, UsageError
from vlm_trt.commands.coco import Folder
from vlm_trt.families.contract import PlaceQuestions
from vlm_trt.families.family import family, known_families
from vlm_trt.families.messages import Grounding
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.places import Place, PlaceKind, places_of, question_of, require_names

SCENE = ROOT / "examples" / "demo_model" / "scene.png"
STARS = [[40, 60, 200, 220], [500, 460, 600, 560]]  # as README shows them


def opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def boxes(places: list[dict[str, object]], name: str) -> list[list[int]]:
    points = [one["points"] for one in places if one["name"] == name]
    return [[round(number) for corner in two for number in corner] for two in points]  # type: ignore[attr-defined]


def test_what_was_drawn_is_found(demo_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    bundle, drawn = demo_bundle("fp32"), tmp_path / "found.png"
    done = vlm_trt("detect", bundle, SCENE, "stars", "yellow squares", "--json", "--draw", drawn)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["size"] == list(opened(SCENE).size) and found["cut"] == [] and found["malformed"] == 0
    assert boxes(found["places"], "stars") == STARS and len(boxes(found["places"], "yellow squares")) == 1
    assert {one["kind"] for one in found["places"]} == {"box"} and found["places"][0]["score"] is None
    assert opened(drawn).size == opened(SCENE).size and opened(drawn).tobytes() != opened(SCENE).tobytes()
    words = vlm_trt("detect", bundle, SCENE, "stars")
    assert words.stdout.splitlines() == ["stars: box (40,60) (200,220) px", "stars: box (500,460) (600,560) px"]
    cut = vlm_trt("detect", bundle, SCENE, "stars", "--max-new-tokens", 10)
    assert "nothing found" in cut.stderr and "cut off, so that some may be missing: stars" in cut.stderr


def test_in_python(demo_bundle: Callable[[str], Path]) -> None:
    model, picture = load(demo_bundle("fp32"), backend="cpu"), SCENE.read_bytes()
    found = model.detect(picture, ["stars"])
    assert [[round(number) for corner in one.points for number in corner] for one in found.places] == STARS
    other = model.detect(picture, ["all stars"], question="Find {name}.")
    assert [one.points for one in other.places] == [one.points for one in found.places]
    with pytest.raises(UsageError, match=r"the question 'Where\?' has no place for the name; write \{name\}"):
        model.detect(picture, ["stars"], question="Where?")


def test_a_folder_becomes_coco_and_goes_on_where_it_was(
    demo_bundle: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, folder, output = demo_bundle("fp32"), tmp_path / "photos", tmp_path / "boxes.json"
    folder.mkdir()
    shutil.copy(SCENE, folder / "a.png")
    (folder / "notes.txt").write_text("no picture")
    line = ("detect", bundle, "stars", "circles", "--images", folder, "-o", output)

    def ended(self: Folder) -> str:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "finish", ended)
        assert vlm_trt(*line).exit_code == 9
    journal = output.with_name("boxes.json.part")
    assert not output.exists() and len(journal.read_text().splitlines()) == 2
    with journal.open("a") as file:
        file.write('{"file": "b.png", "si')  # of a run that was killed
    opened(SCENE).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.png")
    (folder / "c.png").write_bytes(b"broken")
    other = vlm_trt("detect", bundle, "squares", "--images", folder, "-o", output)
    assert other.exit_code == 2 and "is of another run (model, names or question differ); remove it" in other.stderr
    done = vlm_trt(*line, "--precision", "fp32")
    assert done.exit_code == 2 and "is of another run" in done.stderr
    done = vlm_trt(*line)
    assert done.exit_code == 0, done.stderr
    assert f"1 pictures are known from an earlier run ({journal})" in done.stderr
    assert "left out: " in done.stderr and "c.png" in done.stderr and not journal.exists()
    found = json.loads(output.read_text())
    assert [(one["file_name"], one["width"]) for one in found["images"]] == [("a.png", 640), ("b.png", 640)]
    assert found["categories"] == [{"id": 1, "name": "stars"}, {"id": 2, "name": "circles"}]
    assert [one["id"] for one in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    first = [one for one in found["annotations"] if one["image_id"] == 1 and one["category_id"] == 1]
    assert [[round(number) for number in one["bbox"]] for one in first] == [[40, 60, 160, 160], [500, 460, 100, 100]]
    assert all(one["area"] == pytest.approx(one["bbox"][2] * one["bbox"][3]) for one in found["annotations"])
    journal.write_text("mine")
    assert vlm_trt(*line).exit_code == 2 and journal.read_text() == "mine"  # somebody else's
    journal.write_text('{"kind": "b')  # of a run that was killed at once
    assert vlm_trt(*line).exit_code == 0 and json.loads(output.read_text()) == found and not journal.exists()
    mirrored = [one["bbox"] for one in found["annotations"] if one["image_id"] == 2 and one["category_id"] == 1]
    assert len(mirrored) == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((SCENE,), 'give a picture and what to look for in it, such as photo.jpg "traffic light"'),
        ((SCENE, "stars", "stars"), "'stars' is asked for twice; give it once"),
        ((SCENE, " "), "a name to look for is empty; leave it out"),
        ((SCENE, "stars", "-o", "x.json"), "-o is for a folder of pictures; give it with --images"),
        ((SCENE, "stars", "--question", "Where?"), "has no place for the name; write {name} where it belongs"),
        (("stars", "--images", ROOT / "docs"), "--images needs a file for what is found; name it with -o"),
        (("stars", "--images", ROOT / "docs", "-o", "-"), "--images needs a file for what is found; name it with -o"),
        (("stars", "--images", ROOT / "scripts", "-o", "x.json"), "has no picture; their names end with .png, .jpg"),
        (("stars", "--images", SCENE, "-o", "x.json"), "is no folder; give one with pictures"),
        (("stars", "--images", ROOT, "-o", "x.json", "--json"), "--draw and --json are for one picture"),
        ((SCENE, "stars", "--draw", "x.txt"), "the name's ending chooses the format; use one of .png"),
    ],
)
def test_what_is_refused(
    words: tuple[object, ...], sentence: str, demo_bundle: Callable[[str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = vlm_trt("detect", demo_bundle("fp32"), *words)
    assert done.exit_code == 2 and sentence in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_was_not_taught_says_so(demo_bundle: Callable[[str], Path], exported: Callable[..., Path]) -> None:
    done = vlm_trt("point", demo_bundle("fp32"), SCENE, "stars")
    assert done.exit_code == 4
    assert "Qwen-VL-Chat cannot answer with points; it answers with boxes; use Qwen2.5-VL" in done.stderr
    done = vlm_trt("detect", exported("llava15"), SCENE, "stars", "--unverified")
    assert done.exit_code == 4
    assert "LLaVA-1.5 cannot answer with boxes; use Qwen-VL and Qwen-VL-Chat, PaliGemma" in done.stderr


def test_every_family_s_question_names_what_is_looked_for() -> None:
    asked = {name: family(name).place_questions for name in known_families()}
    assert {name for name, questions in asked.items() if questions == PlaceQuestions()} == {"llava15", "smolvlm2"}
    for name, questions in asked.items():
        for kind in (kind for kind in PlaceKind if getattr(questions, kind) is not None):
            assert question_of(family(name), kind).count("{name}") == 1


def test_an_answer_s_places_by_kind() -> None:
    answer = (
        Grounding("dog", "box", ((30.0, 40.0), (10.0, 20.0)), 0),
        Grounding("", "quad", ((1.0, 2.0), (5.0, 1.0), (6.0, 7.0), (0.0, 8.0)), 0),
        Grounding("", "point", ((3.0, 4.0),), 0),
    )
    found = list(places_of("animal", answer, PlaceKind.BOX))
    assert found == [
        Place("animal", ((10.0, 20.0), (30.0, 40.0)), "dog"),
        Place("animal", ((0.0, 1.0), (6.0, 8.0)), ""),
    ]
    assert list(places_of("animal", answer, PlaceKind.POINT)) == [Place("animal", ((3.0, 4.0),), "")]
    with pytest.raises(UsageError, match="nothing to look for; give names"):
        require_names([])
    with pytest.raises(UsageError, match="nothing to look for; give names"):
        require_names("stars")
