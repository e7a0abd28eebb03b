"""Options of `plan` that ask for a fleet."""

import click

from vlm_trt.commands.options import with_options
from vlm_trt.commands.values import NEW_TOKENS, PATH, Number

_RATE, _MILLISECONDS = Number(0.001, 1_000_000), Number(0, 1_000_000_000, min_open=True)
_BURST, _TIMES = Number(0, 20), Number(1, 1000)
_PICTURES, _TURNS, _TOKENS = click.IntRange(0, 64), click.IntRange(1, 1000), click.IntRange(1, 1 << 20)

# None: not given. What is taken then stands in `commands/plan_fleet.py`.
fleet_options = with_options(
    click.option("--requests-per-second", type=_RATE, help="That replicas are to answer; how many does it take?"),
    click.option("--p99-ttft-ms", type=_MILLISECONDS, help="In which 99 of 100 have their first token, milliseconds."),
    click.option("--profile", type=PATH, help="The profile.json of a replica.  [default: floors of --target]"),
    click.option("--above-floor", type=_TIMES, help="How many times its floor a step takes.  [default: 2]"),
    click.option("--pictures", type=_PICTURES, help="Of a conversation, with its first request.  [default: 1]"),
    click.option("--prompt-tokens", type=_TOKENS, help="Of that, pictures included.  [default: 64 and they]"),
    click.option("--answer-tokens", type=NEW_TOKENS, help="On average.  [default: 128]"),
    click.option("--turns", type=_TURNS, help="Requests of a conversation.  [default: 1]"),
    click.option("--burst", type=_BURST, help="Deviation / mean of the gaps between requests.  [default: 1, Poisson]"),
)
