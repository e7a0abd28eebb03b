"""Places in a folder of pictures, as COCO has them: a picture at a time, and gone on with where an earlier run ended.

What is known of a picture is a line of a journal beside the result; the result is made of them at the end.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vlm_trt.bundle.errors import ImageError, PromptError, UsageError
from vlm_trt.bundle.output import append_line, require_output, write_output
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.terminal import say
from vlm_trt.families.images import decode_image, read_picture
from vlm_trt.families.messages import Image, Message, PlaceKind
from vlm_trt.runtime.model import Answer, found_in
from vlm_trt.runtime.places import Place, asked

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def pictures_of(images: Path) -> dict[str, Path]:
    """The pictures of a folder, by their names.

    Raises:
        UsageError: no folder, or no pictures in it.
    """
    if not images.is_dir():
        raise UsageError(f"--images {images} is no folder; give one with pictures")
    files = {one.name: one for one in sorted(images.iterdir()) if one.suffix.lower() in ENDINGS}
    if not files:
        raise UsageError(f"--images {images} has no picture; their names end with {', '.join(ENDINGS)}")
    return files


@dataclass
class Folder:
    """Pictures that are asked about, those that are known already and those that are left."""

    kind: PlaceKind
    names: Sequence[str]
    question: str
    output: Path
    journal: Path
    known: dict[str, dict[str, Any]]  # name of a file → its line
    left: dict[str, Path]
    _open: list[tuple[str, str]] = field(default_factory=list)  # of each conversation, the file and the name
    _answers: dict[str, dict[str, Answer | Exception]] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        files: Mapping[str, Path],
        output: Path,
        bundle: Path,
        kind: PlaceKind,
        names: Sequence[str],
        question: str,
        **rest: Any,
    ) -> "Folder":
        """
        Args:
            files: the pictures, by their names.
            output: the result's file; the journal lies beside it.
            bundle: that is asked.
            kind, names, question: what is asked.
            rest: what else the answers depend on.
        Raises:
            UsageError: a journal of another run.
            StorageError: the result cannot be written.
        """
        require_output(output, read=files.values())
        manifest = Bundle.open(bundle).manifest
        asked_for = {"kind": kind, "names": list(names), "question": question}
        head = asked_for | rest | {"model": manifest.source.files}
        journal = output.with_name(f"{output.name}.part")
        known = _read(journal, head)
        if known is None:
            append_line(journal, _line(head))
        elif known:
            say(f"{len(known)} pictures are known from an earlier run ({journal})")
        left = {name: path for name, path in files.items() if known is None or name not in known}
        return cls(kind, names, question, output, journal, known or {}, left)

    def conversations(self) -> Iterator[list[Message]]:
        """One for each picture and name; pictures that cannot be read are noted and passed over."""
        for file, path in self.left.items():
            try:
                data = read_picture(path)
                decode_image(data, file)
            except ImageError as error:
                self._note(file, {"file": file, "error": str(error)})
                continue
            self._answers[file] = {}
            for name, conversation in zip(self.names, asked(Image(data, file), self.names, self.question), strict=True):
                self._open.append((file, name))
                yield conversation

    def answered(self, at: int, answer: Answer | Exception) -> bool:
        """Takes the answer of the conversation of that number; whether it was its picture's last one.

        Raises:
            Exception: what ended it, where that is not about its picture.
        """
        file, name = self._open[at]
        answers = self._answers[file]
        answers[name] = answer
        if len(answers) < len(self.names):
            return False
        del self._answers[file]
        failed = next((one for one in answers.values() if isinstance(one, Exception)), None)
        if failed is not None and not isinstance(failed, ImageError | PromptError):
            raise failed
        if failed is not None:
            self._note(file, {"file": file, "error": str(failed)})
            return True
        own = [(one, a) for one in self.names if isinstance(a := answers[one], Answer)]
        found = found_in(own, self.kind)
        unread = {name: one.malformed_places for name, one in own if one.malformed_places}
        line = {"file": file, "size": found.size, "places": [asdict(one) for one in found.places]}
        self._note(file, line | {"malformed": unread, "cut": list(found.cut)})
        return True

    def finish(self) -> str:
        """Writes the result of all lines, and removes the journal; what to say of it."""
        read = [line for _, line in sorted(self.known.items()) if "error" not in line]
        write_output(self.output, json.dumps(self._document(read), ensure_ascii=False, indent=1) + "\n")
        self.journal.unlink(missing_ok=True)
        for line in self.known.values():
            if "error" in line:
                say(f"left out: {line['error']}")
        places = sum(len(line["places"]) for line in read)
        return f"wrote {self.output}: {places} {self.kind.plural} in {len(read)} pictures"

    def _note(self, file: str, line: dict[str, Any]) -> None:
        append_line(self.journal, _line(line))
        self.known[file] = line

    def _document(self, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """As COCO has it: [left, top, width, height] of boxes; a point is a keypoint that is seen."""
        category = {name: at for at, name in enumerate(self.names, 1)}
        of_points = {"keypoints": ["point"], "skeleton": []} if self.kind is PlaceKind.POINT else {}
        images, annotations = [], list[dict[str, Any]]()
        for at, line in enumerate(lines, 1):
            images.append({"id": at, "file_name": line["file"], "width": line["size"][0], "height": line["size"][1]})
            for place in places_in(line):
                one = {"id": len(annotations) + 1, "image_id": at, "category_id": category[place.name], "iscrowd": 0}
                annotations.append(one | _shape(place) | ({} if place.score is None else {"score": place.score}))
        return {
            "info": {"description": f"{self.question!r} by vlm-trt"},
            "images": images,
            "categories": [{"id": at, "name": name, **of_points} for name, at in category.items()],
            "annotations": annotations,
        }


def places_in(line: dict[str, Any]) -> Iterator[Place]:
    """The places of a line of the journal."""
    for raw in line["places"]:
        yield Place(**raw | {"points": tuple(map(tuple, raw["points"]))})


def _shape(place: Place) -> dict[str, Any]:
    (left, top), (right, bottom) = place.points[0], place.points[-1]
    box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
    return box if place.kind == PlaceKind.BOX else box | {"keypoints": [left, top, 2], "num_keypoints": 1}


def _read(journal: Path, head: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The lines of an earlier run of the same, what a killed one left half written taken away; None: there was none.

    Raises:
        UsageError: it is about something else.
    """
    if not journal.exists():
        return None
    content, first = journal.read_bytes(), f"{_line(head)}\n".encode()
    if first.startswith(content) and content != first:
        journal.unlink()  # ended before its first line was written
        return None
    if not content.startswith(first):
        raise UsageError(
            f"{journal} is of another run (model, names or question differ); remove it, or name another -o"
        )
    lines, whole = [], len(first)
    for line in content[whole:].splitlines(keepends=True):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        whole += len(line)
    os.truncate(journal, whole)
    return {line["file"]: line for line in lines}


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)
