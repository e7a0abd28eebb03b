"""COCO annotations as a data set: which boxes of which names are in which pictures, read strictly.

Source: cocodataset.org, "Data format", object detection.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Annotated, TypeAlias

from vlm_trt.bundle.errors import DataSetError, ImageError, UsageError
from vlm_trt.bundle.fields import Fields, Origin, Within
from vlm_trt.bundle.reading import LARGE_BYTES, read_json, shown
from vlm_trt.families.images import decode_image, read_picture

_ID, _SIDE, _AREA = Within(0, (1 << 63) - 1), Within(1, 1 << 20), Within(0, 1e14)
_Place: TypeAlias = Annotated[float, Within(-1e7, 1e7)]
_Length: TypeAlias = Annotated[float, Within(0, 1e7)]
_SHOWN = 5  # names of categories in a sentence

Box = tuple[float, float, float, float]  # left, top, width, height, pixels


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True)
class Picture:
    id: int
    file: str  # as the annotations call it
    path: Path
    size: tuple[int, int]  # width and height, pixels


@dataclass(frozen=True)
class Annotation:
    """One thing in a picture, or a crowd of them."""

    picture: int
    category: int
    box: Box
    area: float  # of its outline where it has one, pixels: COCO calls things small, medium and large by it
    crowd: bool  # several things in one box, which is neither missed nor found


@dataclass(frozen=True)
class Annotations:
    """What is in some pictures, by the names that are asked for."""

    name: str
    categories: tuple[Category, ...]  # that are asked for, in the file's order
    pictures: tuple[Picture, ...]  # by their ids
    annotations: tuple[Annotation, ...]  # of these pictures and categories


def read_annotations(
    path: Path, folder: Path, names: Sequence[str] | None = None, count: int | None = None
) -> Annotations:
    """The annotations of a file as COCO has it, such as instances_val2017.json.

    Args:
        path: of the file.
        folder: of the pictures.
        names: of the categories that are asked for; None: all.
        count: the pictures with the lowest ids, so many at most; None: all.
    Raises:
        DataSetError: with file, field and what to do. UsageError: no such name, or no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"--images {folder} is no folder; give the one that the pictures of {path} lie in")
    file = _File.open(path)
    categories, pictures = file.categories(), file.pictures(folder)
    annotations = file.annotations({one.id for one in pictures}, {one.id for one in categories})
    if names is not None:
        categories = _chosen(categories, names, path)
    pictures = tuple(sorted(pictures, key=lambda one: one.id))[:count]
    kept, asked = {one.id for one in pictures}, {one.id for one in categories}
    rest = tuple(one for one in annotations if one.picture in kept and one.category in asked)
    if not any(not one.crowd for one in rest):
        raise DataSetError(
            f"{path} has no box of the names and pictures asked for, so there is nothing to find; ask for others"
        )
    return Annotations(path.name, categories, pictures, rest)


def checked(data: Annotations, progress: Callable[[int], object] = lambda _: None) -> str:
    """sha256 of the names, the boxes and the pictures, each of which is decoded.

    Args:
        data: what is asked about.
        progress: called with 1 for every picture.
    Raises:
        DataSetError: a picture is missing, damaged, or of another size than the annotations say.
    """
    asked = [asdict(one) for one in data.categories], [asdict(one) for one in data.annotations]
    digest = sha256(json.dumps(asked).encode())
    for one in data.pictures:
        try:
            content = read_picture(one.path)
            size = decode_image(content, str(one.path)).size
        except ImageError as error:
            raise DataSetError(f"{data.name}: picture {one.id}: {error}") from None
        if size != one.size:
            raise DataSetError(
                f"{data.name}: {one.path} is {size[0]}×{size[1]} pixels, and picture {one.id} is said to be "
                f"{one.size[0]}×{one.size[1]}; use the pictures that the boxes were drawn in"
            )
        digest.update(f"{one.id} {sha256(content).hexdigest()}".encode())
        progress(1)
    return digest.hexdigest()


@dataclass(frozen=True)
class _File:
    """The file being read; its errors name it and the field."""

    fields: Fields
    origin: Origin

    @classmethod
    def open(cls, path: Path) -> "_File":
        origin = Origin(str(path), DataSetError, "give annotations as COCO has them, such as instances_val2017.json")
        try:
            return cls(Fields(read_json(path, LARGE_BYTES), origin), origin)
        except OSError as error:
            raise DataSetError(f"{path} cannot be read: {error.strerror}; {origin.remedy}") from None
        except ValueError as error:
            raise DataSetError(f"{path} is no JSON that can be read ({error}); {origin.remedy}") from None

    def categories(self) -> tuple[Category, ...]:
        found = dict[int, Category]()
        names = set[str]()
        for one in self._entries("categories"):
            category = Category(one.whole("id", _ID), one.text("name"))
            if category.id in found:
                raise one.wrong("id", f"is {category.id}, as another category's")
            if not category.name.strip() or category.name in names:
                raise one.wrong("name", f"is {shown(category.name)}, which is empty or another category's, too")
            found[category.id] = category
            names.add(category.name)
        return tuple(found.values())

    def pictures(self, folder: Path) -> tuple[Picture, ...]:
        found, files = dict[int, Picture](), set[str]()
        for one in self._entries("images"):
            number, file = one.whole("id", _ID), one.text("file_name")
            inside = PurePosixPath(file)
            if inside.is_absolute() or ".." in inside.parts or not inside.parts or "\0" in file:
                raise one.wrong("file_name", f"is {shown(file)}, which is no path in the folder of the pictures")
            if number in found or file in files:
                raise one.wrong("file_name" if file in files else "id", "is another picture's, too")
            files.add(file)
            size = one.whole("width", _SIDE), one.whole("height", _SIDE)
            found[number] = Picture(number, file, folder / file, size)
        return tuple(found.values())

    def annotations(self, pictures: set[int], categories: set[int]) -> tuple[Annotation, ...]:
        found = list[Annotation]()
        for at, one in enumerate(self._entries("annotations")):
            picture, category = one.whole("image_id", _ID), one.whole("category_id", _ID)
            if picture not in pictures:
                raise one.wrong("image_id", f"is {picture}, and there is no such picture")
            if category not in categories:
                raise one.wrong("category_id", f"is {category}, and there is no such category")
            box = self.origin.value(
                tuple[_Place, _Place, _Length, _Length], one.items("bbox"), f"annotations[{at}].bbox"
            )
            crowd = one.whole("iscrowd", Within(0, 1), 0) == 1
            found.append(Annotation(picture, category, box, one.number("area", _AREA), crowd))
        return tuple(found)

    def _entries(self, key: str) -> Iterator[Fields]:
        """The objects of a list."""
        return (Fields(one, self.origin, f"{key}[{at}]") for at, one in enumerate(self.fields.items(key)))


def _chosen(categories: Sequence[Category], names: Sequence[str], path: Path) -> tuple[Category, ...]:
    known = [one.name for one in categories]
    for name in names:
        if name not in known:
            more = f", … ({len(known)} in all)" if len(known) > _SHOWN else ""
            raise UsageError(f"{path} has no category {name!r}; it has {', '.join(known[:_SHOWN])}{more}")
    return tuple(one for one in categories if one.name in names)
