"""COCO annotations: read strictly, chosen from, and compared with the pictures that they are about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_trt.bundle.errors import DataSetError, UsageError
from vlm_trt.evaluation.annotations import Annotation, Category, checked, read_annotations

RAW: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 9, "file_name": "b.png", "width": 30, "height": 20, "license": 1},
        {"id": 4, "file_name": "sub/a.png", "width": 20, "height": 10},
    ],
    "annotations": [
        {"id": 0, "image_id": 9, "category_id": 18, "bbox": [1, 2, 3.5, 4], "area": 9.5, "iscrowd": 0,
         "segmentation": [[1, 2, 3, 4, 5, 6]]},
        {"id": 1, "image_id": 4, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 20, "iscrowd": 1},
        {"id": 2, "image_id": 4, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 20},
    ],
    "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "traffic light"}],
}  # fmt: skip


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Any], Path]:
    def write(raw: Any) -> Path:
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(raw))
        return path

    return write


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "b.png")
    Image.new("RGB", (20, 10)).save(folder / "sub" / "a.png")
    return folder


def test_all_of_it(written: Callable[[Any], Path], pictures: Path) -> None:
    data = read_annotations(written(RAW), pictures)
    assert data.name == "instances.json" and data.categories == (Category(18, "dog"), Category(1, "traffic light"))
    assert [(one.id, one.file, one.size) for one in data.pictures] == [
        (4, "sub/a.png", (20, 10)),
        (9, "b.png", (30, 20)),
    ]
    assert data.annotations == (
        Annotation(9, 18, (1.0, 2.0, 3.5, 4.0), 9.5, False),
        Annotation(4, 1, (0.0, 0.0, 5.0, 5.0), 20.0, True),
        Annotation(4, 1, (0.0, 0.0, 5.0, 5.0), 20.0, False),
    )
    done = list[int]()
    first = checked(data, done.append)
    assert done == [1, 1] and first == checked(data)
    Image.new("RGB", (30, 20), "red").save(pictures / "b.png")
    assert checked(data) != first


def test_some_of_it(written: Callable[[Any], Path], pictures: Path) -> None:
    path = written(RAW)
    lights = read_annotations(path, pictures, ["traffic light"])
    assert [one.name for one in lights.categories] == ["traffic light"] and len(lights.annotations) == 2
    assert len(lights.pictures) == 2  # one without any is asked about, too
    first = read_annotations(path, pictures, count=1)
    assert [one.id for one in first.pictures] == [4] and {one.picture for one in first.annotations} == {4}
    with pytest.raises(DataSetError, match="has no box of the names and pictures asked for"):
        read_annotations(path, pictures, ["dog"], 1)
    with pytest.raises(UsageError, match="instances.json has no category 'cat'; it has dog, traffic light$"):
        read_annotations(path, pictures, ["dog", "cat"])
    with pytest.raises(UsageError, match="--images .*nothing is no folder; give the one that the pictures of"):
        read_annotations(path, pictures / "nothing")


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("images", {}, "images is {}, not a list; give annotations as COCO has them"),
        ("images.0.file_name", "../b.png", r"images\[0\].file_name is '../b.png', which is no path in the folder"),
        ("images.0.file_name", "/b.png", r"images\[0\].file_name is '/b.png', which is no path in the folder"),
        ("images.0.file_name", "", r"images\[0\].file_name is '', which is no path in the folder"),
        ("images.1.file_name", "b.png", r"images\[1\].file_name is another picture's, too"),
        ("images.1.id", 9, r"images\[1\].id is another picture's, too"),
        ("images.1.id", "4", r"images\[1\].id is '4', not a whole number"),
        ("images.1.width", 0, r"images\[1\].width is 0, not a whole number from 1"),
        ("categories.1.id", 18, r"categories\[1\].id is 18, as another category's"),
        ("categories.1.name", "dog", r"categories\[1\].name is 'dog', which is empty or another category's"),
        ("categories.1.name", " ", r"categories\[1\].name is ' ', which is empty or another category's"),
        ("annotations.0.image_id", 5, r"annotations\[0\].image_id is 5, and there is no such picture"),
        ("annotations.0.category_id", 5, r"annotations\[0\].category_id is 5, and there is no such category"),
        ("annotations.0.bbox", [1, 2, 3], r"annotations\[0\].bbox has 3 values instead of 4"),
        ("annotations.0.bbox", [1, 2, -3, 4], r"annotations\[0\].bbox\[2\] is -3, not a number from 0"),
        ("annotations.0.bbox", [1, 2, float("nan"), 4], r"annotations\[0\].bbox\[2\] is nan, not a number"),
        ("annotations.0.area", None, r"annotations\[0\].area is missing"),
        ("annotations.0.iscrowd", 2, r"annotations\[0\].iscrowd is 2, not a whole number from 0 to 1"),
        ("annotations", [1], r"annotations\[0\] is 1, not an object"),
        ("annotations", [], "has no box of the names and pictures asked for"),
    ],
)
def test_what_is_wrong_is_said(
    field: str, value: Any, sentence: str, written: Callable[[Any], Path], pictures: Path
) -> None:
    raw = json.loads(json.dumps(RAW))
    *path, last = field.split(".")
    inner = raw
    for key in path:
        inner = inner[int(key) if key.isdigit() else key]
    inner[last] = value
    with pytest.raises(DataSetError, match=sentence):
        read_annotations(written(raw), pictures)


def test_what_is_no_such_file_is_said(written: Callable[[Any], Path], pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(DataSetError, match="the top level is .*, not an object; give annotations as COCO has them"):
        read_annotations(written([{"image_id": 1}]), pictures)
    with pytest.raises(DataSetError, match="none.json cannot be read: No such file"):
        read_annotations(tmp_path / "none.json", pictures)
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(DataSetError, match="half.json is no JSON that can be read .*; give annotations as COCO has"):
        read_annotations(tmp_path / "half.json", pictures)


def test_other_pictures_are_refused(written: Callable[[Any], Path], pictures: Path) -> None:
    data = read_annotations(written(RAW), pictures)
    Image.new("RGB", (20, 30)).save(pictures / "b.png")
    with pytest.raises(
        DataSetError, match="b.png is 20×30 pixels, and picture 9 is said to be 30×20; use the pictures"
    ):
        checked(data)
    (pictures / "b.png").write_bytes(b"broken")
    with pytest.raises(DataSetError, match="instances.json: picture 9: .*b.png is no picture this version reads"):
        checked(data)
    (pictures / "b.png").unlink()
    with pytest.raises(DataSetError, match="instances.json: picture 9: .*b.png"):
        checked(data)
