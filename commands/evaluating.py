"""`vlm-trt evaluate` as the command line has it; `commands/evaluate.py` and `commands/evaluate_coco.py` run it."""

from pathlib import Path
from typing import Any

import click

from vlm_trt.bundle.errors import UsageError
from vlm_trt.commands.options import json_option, load_options, with_options
from vlm_trt.commands.values import LEAST_SCORE, LINES, LOCATION, NAMES, NEW_TOKENS, PATH, PRECISIONS, QUESTIONS, SEED

# Options that are about questions with an answer each, and what they are where nobody gives them.
_OF_QUESTIONS = {"seed": None, "baseline": None, "baseline_precision": None, "show_wrong": 0}

evaluate_options = with_options(
    click.option(
        "--data",
        type=LOCATION,
        required=True,
        help="A JSONL file, a folder that holds one, or the word synthetic; with --images, COCO annotations.",
    ),
    click.option("--images", type=PATH, help="The folder of the pictures that COCO annotations are about."),
    click.option("--names", type=NAMES, help="Of COCO annotations, only these.  [default: all]"),
    click.option(
        "--count", type=QUESTIONS, help="Examples of synthetic, or pictures of annotations.  [default: 400, all]"
    ),
    click.option("--seed", type=SEED, help="Of synthetic's scenes.  [default: 0]"),
    click.option("--max-new-tokens", type=NEW_TOKENS, help="Longest answer.  [default: 64; about boxes, the model's]"),
    click.option(
        "--baseline",
        type=LOCATION,
        help="Compare with this: another precision of BUNDLE, another bundle, or a file made by -o.",
    ),
    click.option(
        "--baseline-precision", type=PRECISIONS, help="Of a baseline bundle.  [default: the backend's preferred]"
    ),
    click.option(
        "--min-score",
        "least",
        type=LEAST_SCORE,
        multiple=True,
        help="End with 10 below this score, from 0 to 1, of all examples, or of one task or figure; may be repeated.",
    ),
    click.option("-o", "--output", type=PATH, help="Write the result with every answer to this JSON file."),
    json_option,
    click.option("--show-wrong", type=LINES, default=0, metavar="N", help="Print the first N wrong answers."),
)


@click.command()
@click.argument("bundle", type=PATH)
@evaluate_options
@load_options
def evaluate(bundle: Path, images: Path | None, names: tuple[str, ...] | None, **options: Any) -> None:
    """Ask BUNDLE every question of a data set and score its greedy answers per task.

    One line of the JSONL file is one example: images, prompt, reference, metric; docs/evaluation.md describes it. With
    --images, --data are COCO annotations: every name is asked about every picture, and the boxes are scored as COCO
    has it. A run that was ended goes on where it was.

    \b
    Example:
      vlm-trt evaluate bundle --data questions.jsonl -o result.json
      vlm-trt evaluate bundle --data questions.jsonl --precision fp16 --baseline result.json --show-wrong 5
      vlm-trt evaluate bundle --data questions.jsonl --min-score 0.9 --min-score read=0.95
      vlm-trt evaluate bundle --data instances_val2017.json --images val2017 --names "person,dog" --count 500 -o ap.json
    """
    if images is None:
        from vlm_trt.commands.evaluate import run as run_questions

        if names is not None:
            raise UsageError("--names is about COCO annotations; give the folder of their pictures with --images")
        run_questions(bundle, **options)
        return
    for option, default in _OF_QUESTIONS.items():
        if options.pop(option) != default:
            raise UsageError(f"--{option.replace('_', '-')} is not for COCO annotations; leave it out with --images")
    from vlm_trt.commands.evaluate_coco import run

    run(bundle, images=images, names=names, **options)
