"""Options that several commands share, and the values they take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bundle.signature import Precision

FLOATS = click.Choice(["fp32", "fp16", "bf16"])
PRECISIONS = click.Choice([str(precision) for precision in Precision])
COMPONENTS = click.Choice(["vision_encoder", "resampler", "decoder"])
BACKENDS = click.Choice(["auto", "tensorrt", "tensorrt-rtx", "cuda", "cuda-graph", "cpu"])
BUILDERS = click.Choice(["tensorrt", "tensorrt-rtx"])
FOLDER = click.Path(path_type=Path)


def with_options(*options: Any) -> Callable[[Any], Any]:
    """A decorator that adds options in the order given."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


load_options = with_options(
    click.option("--precision", type=PRECISIONS, help="Which graphs.  [default: the backend's preferred ones]"),
    click.option(
        "--backend",
        type=BACKENDS,
        default="auto",
        show_default=True,
        help="Where they run.",
    ),
    click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: one per core]"),
    click.option("--unverified", is_flag=True, help="Answer from graphs that are not shown equal to the model."),
)
answer_options = with_options(
    click.option("--system", help="System text.  [default: the model's own]"),
    click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer.  [default: the model's]"),
    click.option("--greedy", is_flag=True, default=None, help="Always take the likeliest token."),
    click.option("--temperature", type=float, help="Sampling temperature.  [default: the model's]"),
    click.option("--top-k", type=int, help="Sample among this many tokens; 0: all.  [default: the model's]"),
    click.option("--top-p", type=float, help="Sample within this probability mass.  [default: the model's]"),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less.  [default: the model's]"),
    click.option("--seed", type=int, default=0, show_default=True, help="Of the sampling."),
    click.option("--stop", "stop_strings", multiple=True, help="End the answer at this text; may be repeated."),
    click.option("--ignore-eos", is_flag=True, help="Generate on to --max-new-tokens, whatever comes."),
)
