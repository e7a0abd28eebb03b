"""How many replicas so many requests a second need, by a simulation of the fleet; and that beside real servers.

    python -m benchmarks.fleet --check /data/scratch > benchmarks/results/fleet.json

The tables are of Qwen-VL in fp16 on H100s, from twice the floors of its steps: computed. `--check` runs two servers of
a small model here, a core each, under requests that arrive by chance, and simulates the same ones from a profile; it
wants two cores that nobody else uses, and takes five minutes. `--engine` does so without servers, on a clock of its
own, which other work disturbs little.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.decode_model import card_named, official, weights_of
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.precision import Precision
from vlm_trt.commands.replica_costs import of_floors
from vlm_trt.engines.plan import plan
from vlm_trt.fleet.dispatch import by_prefix, least_busy, less_busy
from vlm_trt.fleet.outcome import Figures
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.sizing import Question, size
from vlm_trt.fleet.workload import Traffic
from vlm_trt.runtime.environment import environment

CARD, ABOVE_FLOOR, POSITIONS = "H100-80GB", 2.0, 2048
TEXT_TOKENS, ANSWER_TOKENS = 64, 128
# Replicas needed: by requests a second, milliseconds to the first token and bursts.
RATES, FIRST_TOKEN_MS, BURSTS, SLOTS = (2.0, 10.0, 40.0), (300.0, 1000.0, 3000.0), (1.0, 3.0), 16
# What it is worth to send a conversation where it was before: by a replica's slots and requests a second, and by how
# much more it may have to do than the least busy one, as a share of its slots.
REPLICAS, TURNS, CACHES = 4, 4, ((16, 2.0), (16, 20.0), (48, 8.0), (48, 30.0))
BEHIND = (0.0, 0.125, 0.25, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="of a checkpoint and a bundle, made once")
    parser.add_argument("--seconds", type=float, default=45.0, help="of each run of the check")
    parser.add_argument("--engine", type=Path, metavar="FOLDER", help="of the same")
    parser.add_argument("--requests", type=int, default=160, help="of each run of --engine")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "replicas": list(needed()), "by_prefix": list(prefixes())}
    if arguments.engine is not None:
        from benchmarks.fleet_engine import on_their_own_clock  # needs what exports

        found["engine"] = on_their_own_clock(arguments.engine, arguments.requests)
    if arguments.check is not None:
        from benchmarks.fleet_check import checked  # needs what exports

        found["check"] = checked(arguments.check, arguments.seconds)
    print(json.dumps(found, indent=1))


def question(rate: float, first_token_ms: float, slots: int, burst: float = 1.0, turns: int = 1) -> Question:
    """Of Qwen-VL: a picture and a question, and what follows them."""
    model, card = official(), card_named(CARD)
    limits = Limits(max_seq_tokens=POSITIONS, max_batch=slots, max_images=4)
    one = plan(model, limits, Precision.FP16, weights_of(Precision.FP16))
    assert one.vram_bytes < card.gpu.memory_bytes
    traffic = Traffic(
        requests_per_second=rate,
        text_tokens=TEXT_TOKENS,
        answer_tokens=ANSWER_TOKENS,
        pictures=1,
        picture_tokens=model.most_picture_tokens,
        burst=burst,
        turns=turns,
    )
    kind = Kind(costs=of_floors(model, one, card.gpu, ABOVE_FLOOR), slots=slots)
    return Question(traffic, first_token_ms, kind, POSITIONS)


def needed() -> Iterator[dict[str, Any]]:
    """Replicas, with all of them there and while one is gone."""
    for rate in RATES:
        for first_token_ms in FIRST_TOKEN_MS:
            for burst in BURSTS:
                asked = question(rate, first_token_ms, SLOTS, burst)
                all_there, one_gone = (size(asked, less_busy, one_dies=dies) for dies in (False, True))
                by_all = size(asked, least_busy).replicas
                row = {"requests_per_second": rate, "first_token_ms": first_token_ms, "burst": burst}
                row |= {"replicas": all_there.replicas, "one_may_die": one_gone.replicas, "least_busy_of_all": by_all}
                row |= brief(all_there.figures)
                print(json.dumps(row), file=sys.stderr, flush=True)
                yield row


def prefixes() -> Iterator[dict[str, Any]]:
    """The same replicas, by how requests are sent to them."""
    for slots, rate in CACHES:
        asked = question(rate, 1000.0, slots, turns=TURNS)
        row: dict[str, Any] = {"slots": slots, "requests_per_second": rate, "replicas": REPLICAS}
        for name, router in (("to the less busy of two", less_busy), ("to the least busy of all", least_busy)):
            yield row | {"sent": name} | brief(asked.figures(REPLICAS, router))
        for most in (int(share * slots) for share in BEHIND):
            figures = asked.figures(REPLICAS, partial(by_prefix, most_behind=most))
            yield row | {"sent": "by prefix", "most_behind": most} | brief(figures)


def brief(figures: Figures) -> dict[str, Any]:
    assert figures.time_to_first_token is not None
    return {
        "first_token_p50_ms": round(figures.time_to_first_token.p50, 1),
        "first_token_p99_ms": round(figures.time_to_first_token.p99, 1),
        "running": round(figures.running, 2),
        "prompt_known": round(figures.reused_share, 3),
    }


if __name__ == "__main__":
    main()
