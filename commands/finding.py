"""`vlm-trt detect` and `vlm-trt point` as the command line has them; `commands/detect.py` runs them."""

from pathlib import Path
from typing import Any

import click

from vlm_trt.commands.options import json_option, load_options, with_options
from vlm_trt.commands.values import NEW_TOKENS, PATH, TEXT

places_options = with_options(
    click.option("--images", type=PATH, help="A folder of pictures, in the place of IMAGE."),
    click.option("-o", "--output", type=PATH, help="With --images: the file for what is found, as COCO has it."),
    click.option("--draw", type=PATH, help="Write the picture with what was found drawn into it."),
    click.option("--question", type=TEXT, help="To ask instead of the family's, with {name} in it."),
    click.option("--max-new-tokens", type=NEW_TOKENS, help="Of an answer.  [default: the model's]"),
    json_option,
)


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("words", metavar="[IMAGE] NAME...", nargs=-1, type=TEXT, required=True)
@places_options
@load_options
def detect(bundle: Path, words: tuple[str, ...], **options: Any) -> None:
    """Find boxes of everything that has one of the NAMEs in IMAGE, or in every picture of a folder.

    The model is asked in the words of its family, and whatever it answers with becomes pixels of the original picture.
    A folder's boxes are written as COCO has them; a run that was ended goes on where it was.

    \b
    Example:
      vlm-trt detect bundle street.jpg "traffic light" bicycle --draw found.png
      vlm-trt detect bundle bicycle --images photos -o boxes.json
    """
    from vlm_trt.commands.detect import run
    from vlm_trt.families.messages import PlaceKind

    run(PlaceKind.BOX, bundle, words, **options)


@click.command()
@click.argument("bundle", type=PATH)
@click.argument("words", metavar="[IMAGE] NAME...", nargs=-1, type=TEXT, required=True)
@places_options
@load_options
def point(bundle: Path, words: tuple[str, ...], **options: Any) -> None:
    """Find a point on everything that has one of the NAMEs in IMAGE, or in every picture of a folder.

    As `vlm-trt detect`, for models that were taught to point.

    \b
    Example:
      vlm-trt point bundle street.jpg "traffic light" --json
    """
    from vlm_trt.commands.detect import run
    from vlm_trt.families.messages import PlaceKind

    run(PlaceKind.POINT, bundle, words, **options)
