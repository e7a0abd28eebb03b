"""`vlm-trt detect` and `vlm-trt point`: where things are, in one picture or in all of a folder."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.errors import UsageError
from vlm_trt.bundle.output import STANDARD_OUTPUT, require_output
from vlm_trt.bundle.store import Bundle
from vlm_trt.commands.coco import Folder, pictures_of
from vlm_trt.commands.draw import draw_places, picture_format
from vlm_trt.commands.generate import loaded
from vlm_trt.commands.shown import read_images
from vlm_trt.commands.terminal import count_bar, printable, say
from vlm_trt.families.family import family
from vlm_trt.families.messages import PlaceKind
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.places import Found, question_of, require_names


def run(
    kind: PlaceKind,
    bundle: Path,
    words: Sequence[str],
    images: Path | None,
    output: Path | None,
    draw: Path | None,
    question: str | None,
    as_json: bool,
    max_new_tokens: int | None,
    **loading: Any,
) -> None:
    picture, names = _arranged(words, images, output, draw, as_json)
    require_names(names)
    members = family(Bundle.open(bundle).manifest.model.family)
    wanted, options = question_of(members, kind, question), Options(greedy=True, max_new_tokens=max_new_tokens)
    if images is not None:
        assert output is not None
        settings = {"precision": loading["precision"], "max_new_tokens": max_new_tokens}
        folder = Folder.open(pictures_of(images), output, bundle, kind, names, wanted, **settings)
        if folder.left:
            _folder(loaded(bundle, **loading), folder, options)
        say(folder.finish())
        return
    (image,) = read_images([picture])
    if draw is not None:
        require_output(draw, read=[picture])
        picture_format(draw, image)
    model = loaded(bundle, **loading)
    look = model.detect if kind is PlaceKind.BOX else model.point
    found = look(image, names, options, question=wanted)
    _show(found, as_json)
    if draw is not None:
        draw_places(image, found.places, draw)
        say(f"wrote {draw}")


def _arranged(
    words: Sequence[str], images: Path | None, output: Path | None, draw: Path | None, as_json: bool
) -> tuple[Path, Sequence[str]]:
    """The picture and the names; of a folder, the names alone."""
    if images is None:
        if output is not None:
            raise UsageError("-o is for a folder of pictures; give it with --images, or leave -o out")
        if len(words) < 2:
            raise UsageError('give a picture and what to look for in it, such as photo.jpg "traffic light"')
        return Path(words[0]), words[1:]
    if output is None or output == STANDARD_OUTPUT:
        raise UsageError("--images needs a file for what is found; name it with -o")
    if draw is not None or as_json:
        raise UsageError("--draw and --json are for one picture; leave them out with --images")
    return images, words


def _folder(model: VisionLanguageModel, folder: Folder, options: Options) -> None:
    """Every picture that is left, as many questions at once as the bundle has slots."""
    answers = model.answer_each(folder.conversations(), options)
    with count_bar("pictures", len(folder.left)) as bar, closing(answers):
        for at, answer in answers:
            if folder.answered(at, answer) and bar is not None:
                bar.update(1)


def _show(found: Found, as_json: bool) -> None:
    if as_json:
        places = [asdict(one) | {"kind": one.kind} for one in found.places]
        click.echo(json.dumps(asdict(found) | {"places": places}, ensure_ascii=False))
    for one in () if as_json else found.places:
        points = " ".join(f"({x:.0f},{y:.0f})" for x, y in one.points)
        click.echo(f"{printable(one.name)}: {one.kind} {points} px")
    if not found.places:
        say("nothing found")
    if found.malformed:
        say(f"(places left out, unreadable: {found.malformed})")
    if found.cut:
        say(f"(cut off, so that some may be missing: {', '.join(map(printable, found.cut))}; give --max-new-tokens)")
