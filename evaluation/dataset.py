"""What a model is asked and what is right: a JSONL file read strictly."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import DataSetError, ImageError
from vlm_trt.bundle.reading import LARGE_BYTES, parse_json, read_bytes
from vlm_trt.evaluation.metrics import METRICS, Reference
from vlm_trt.families.images import decode_image, read_picture
from vlm_trt.families.messages import Answered

# A model family's parser: text as generated, sizes of the pictures in pixels.
ParseAnswer = Callable[[str, Sequence[tuple[int, int]]], Answered]

SYNTHETIC = "synthetic"
_REQUIRED = ("images", "prompt", "reference", "metric")
_OPTIONAL = ("task", "history")


@dataclass(frozen=True)
class ImageSource:
    """A picture not read yet: a file, or encoded bytes in memory; one of the two."""

    name: str
    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert (self.path is None) != (self.data is None)

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ImageError: the file cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        return read_picture(self.path)


@dataclass(frozen=True, kw_only=True)
class Query:
    """Something to ask a model."""

    name: str  # where it stands: "data.jsonl:7"
    prompt: str
    images: tuple[ImageSource, ...]  # they stand before the first turn
    history: tuple[tuple[str, str], ...] = ()  # earlier turns: user, assistant


@dataclass(frozen=True, kw_only=True)
class Example(Query):
    """One question and its right answer."""

    task: str  # the row of the table it counts in
    reference: Reference
    metric: str  # a key of evaluation.metrics.METRICS


@dataclass(frozen=True, kw_only=True)
class Sample(Query):
    """Something to watch a model at: the answer is what it is led through; without one, it answers by itself."""

    answer: str | None = None


@dataclass(frozen=True)
class DataSet:
    """Examples in order, and what they are known by."""

    name: str
    sha256: str  # of every question, reference and picture, in order; names and places of files do not count
    examples: tuple[Example, ...]


def read_data(path: Path, parse: ParseAnswer) -> DataSet:
    """The examples of a JSONL file, every line and every picture checked.

    Args:
        path: a JSONL file, or a folder that holds data.jsonl or exactly one *.jsonl.
        parse: of the model family whose format the references of box_iou are written in.
    Raises:
        DataSetError: with file, line and what to do.
    """
    file, lines = _lines(path)
    sizes: dict[Path, tuple[int, int]] = {}
    examples = tuple(_Line(file, number, sizes, parse).example(line) for number, line in enumerate(lines, start=1))
    return DataSet(file.name, fingerprint(examples), examples)


def read_samples(path: Path) -> tuple[Sample, ...]:
    """The samples of a JSONL file, every line and every picture checked; of a data set, the questions.

    Args:
        path: as for `read_data`; lines hold images, prompt, and perhaps answer and history.
    Raises:
        DataSetError: with file, line and what to do.
    """
    file, lines = _lines(path)
    sizes: dict[Path, tuple[int, int]] = {}
    return tuple(_Line(file, number, sizes, None).sample(line) for number, line in enumerate(lines, start=1))


def _lines(path: Path) -> tuple[Path, list[str]]:
    """The file that is meant, and its lines."""
    file = _find(path)
    try:
        text = read_bytes(file, LARGE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise DataSetError(f"{file} cannot be read: {error.strerror}; give a JSONL file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataSetError(f"{file}:{line}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    if not text.strip():
        raise DataSetError(f"{file} is empty; write one example per line, as docs/evaluation.md shows")
    return file, text.removesuffix("\n").split("\n")


def _find(path: Path) -> Path:
    """The JSONL file meant by a path."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataSetError(
            f"{path} is no file and no folder; give a JSONL file, a folder that holds one, or {SYNTHETIC}"
        )
    if (path / "data.jsonl").is_file():
        return path / "data.jsonl"
    found = sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        raise DataSetError(
            f"{path} holds {len(found) or 'no'} *.jsonl files and no data.jsonl; name the file that is meant"
        )
    return found[0]


@dataclass(frozen=True)
class _Line:
    """One line being read; its errors name it."""

    file: Path
    number: int
    sizes: dict[Path, tuple[int, int]]  # of the pictures decoded so far, pixels
    parse: ParseAnswer | None  # None where nothing is judged

    def sample(self, text: str) -> Sample:
        raw = self._object(text, ("images", "prompt"), (*_REQUIRED, *_OPTIONAL, "answer"))
        answer = raw.get("answer")
        return Sample(
            name=f"{self.file.name}:{self.number}",
            prompt=self._text(raw["prompt"], "prompt"),
            images=tuple(self._picture(name) for name in self._list(raw["images"], "images", "paths of pictures")),
            history=tuple(self._turn(turn) for turn in self._list(raw.get("history", []), "history", "turns")),
            answer=None if answer is None else self._text(answer, "answer"),
        )

    def example(self, text: str) -> Example:
        raw, parse = self._object(text, _REQUIRED, (*_REQUIRED, *_OPTIONAL)), self.parse
        assert parse is not None
        metric = self._text(raw["metric"], "metric")
        if metric not in METRICS:
            raise self._wrong(f"metric {metric!r} is unknown; choose one of {', '.join(METRICS)}")
        images = tuple(self._picture(name) for name in self._list(raw["images"], "images", "paths of pictures"))
        sizes = [self.sizes[image.path] for image in images if image.path is not None]
        try:
            reference = METRICS[metric].check(raw["reference"], lambda answer: parse(answer, sizes))
        except ValueError as error:
            raise self._wrong(f"the reference of {metric} {error}") from None
        return Example(
            name=f"{self.file.name}:{self.number}",
            task=self._text(raw.get("task", metric), "task"),
            prompt=self._text(raw["prompt"], "prompt"),
            reference=reference,
            metric=metric,
            images=images,
            history=tuple(self._turn(turn) for turn in self._list(raw.get("history", []), "history", "turns")),
        )

    def _object(self, text: str, required: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
        if not text.strip():
            raise self._wrong("the line is empty; remove it")
        try:
            raw = parse_json(text)
            # Half of a surrogate pair can be written as an escape, and is no text.
            json.dumps(raw, ensure_ascii=False).encode()
        except ValueError as error:
            raise self._wrong(f"no JSON that can be read ({error}); write one object per line") from None
        if not isinstance(raw, dict):
            raise self._wrong(f"{_shown(raw)} is no object; every line needs {', '.join(required)}")
        if unknown := [key for key in raw if key not in known]:
            raise self._wrong(f"{unknown[0]!r} is unknown; known are {', '.join(known)}")
        if missing := [key for key in required if key not in raw]:
            raise self._wrong(f"{missing[0]!r} is missing; every line needs {', '.join(required)}")
        return raw

    def _picture(self, name: Any) -> ImageSource:
        text = self._text(name, "images")
        path = self.file.parent / text
        if not _inside(path, self.file.parent):
            raise self._wrong(f"the picture {text!r} leaves the folder of the file; copy it into that folder")
        if path not in self.sizes:
            try:
                self.sizes[path] = decode_image(read_picture(path), str(path)).size
            except ImageError as error:
                raise self._wrong(str(error)) from None
        return ImageSource(path.name, path)

    def _turn(self, raw: Any) -> tuple[str, str]:
        if not isinstance(raw, dict) or set(raw) != {"user", "assistant"}:
            raise self._wrong('a turn of history is not {"user": …, "assistant": …}; write earlier turns so')
        return self._text(raw["user"], "user"), self._text(raw["assistant"], "assistant")

    def _list(self, raw: Any, key: str, what: str) -> list[Any]:
        if not isinstance(raw, list):
            raise self._wrong(f"{key!r} is {_shown(raw)}; give a list of {what}, which may be empty")
        return raw

    def _text(self, raw: Any, key: str) -> str:
        if not isinstance(raw, str) or not raw.strip():
            raise self._wrong(f"{key!r} holds {_shown(raw)}; give a text")
        return raw

    def _wrong(self, what: str) -> DataSetError:
        return DataSetError(f"{self.file}:{self.number}: {what}")


def _inside(path: Path, folder: Path) -> bool:
    """Whether the path, its links followed, lies in the folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a zero byte
        return False


def _shown(raw: Any) -> str:
    """A wrong value, short enough for a sentence, and nothing in it that could steer a terminal."""
    text = "".join(c if c.isprintable() else "�" for c in json.dumps(raw, ensure_ascii=False))
    return text if len(text) <= 40 else f"{text[:40]}…"


def fingerprint(examples: Iterable[Query]) -> str:
    """sha256 over what a model is asked, and judged by, one picture in memory at a time."""
    digest, known = sha256(), dict[Path, str]()
    for example in examples:
        pictures = []
        for source in example.images:
            picture = known.get(source.path) if source.path is not None else None
            picture = picture or sha256(source.read()).hexdigest()
            if source.path is not None:
                known[source.path] = picture
            pictures.append(picture)
        stated = {**asdict(example), "name": None, "images": pictures}
        digest.update(json.dumps(stated, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
