"""Options of what runs on a Ray cluster: of `serve --ray`, and of `export-serving ray`."""

from typing import Any

import click

from vlm_trt.commands.options import with_options
from vlm_trt.commands.values import TEXT, Context, Number, Parameter

_MOST = 10_000


class Replicas(click.ParamType[tuple[int, int]]):
    """A number of engines, or a range that Ray scales in."""

    name = "n|least:most"

    def convert(self, value: Any, param: Parameter, ctx: Context) -> tuple[int, int]:
        if not isinstance(value, str):
            return tuple(value)
        least, colon, most = TEXT.convert(value, param, ctx).partition(":")
        first, last = _number(least), _number(most if colon else least)
        if not 0 < first <= last <= _MOST:
            self.fail(f"{value!r} is no number of engines; write N, or LEAST:MOST, each from 1 to {_MOST}", param, ctx)
        return first, last


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


REPLICAS, SHARES, INGRESSES = Replicas(), Number(0, 64), click.IntRange(1, 1_000)

ray_options = with_options(
    click.option(
        "--replicas",
        type=REPLICAS,
        default="1",
        show_default=True,
        help="Engines of every model; LEAST:MOST: as many as requests ask for.",
    ),
    click.option("--ingresses", type=INGRESSES, default=1, show_default=True, help="Front doors, which only pass on."),
    click.option("--gpus-per-replica", type=SHARES, help="GPUs of one engine.  [default: 1, and 0 with --backend cpu]"),
    click.option(
        "--prefix-routing/--no-prefix-routing",
        "by_prefix",
        default=True,
        show_default=True,
        help="Ask the engine that has the beginning of the prompt.",
    ),
)
serve_ray_options = with_options(
    click.option("--ray", "with_ray", is_flag=True, help="On a Ray cluster: engines on every machine of it."),
    click.option("--ray-address", type=TEXT, help="Of the cluster.  [default: RAY_ADDRESS, or one on this machine]"),
    click.option(
        "--detach", is_flag=True, help="With --ray: return when it answers; again with another bundle, an upgrade."
    ),
    ray_options,
)
