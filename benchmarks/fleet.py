"""How many replicas so many requests a second need, by a simulation of the fleet; and that beside real servers.

    python -m benchmarks.fleet --check /data/scratch > benchmarks/results/fleet.json

The table is of Qwen-VL in fp16 on H100s, 16 sequences at once, from twice the floors of its steps: computed. `--check`
runs two servers of a small model here, a core each, under requests that arrive by chance, and simulates the same ones
from a profile; it wants two cores that nobody else uses, and takes five minutes.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.decode_model import card_named, official, weights_of
from vlm_trt.bundle.config import Limits
from vlm_trt.bundle.errors import ResourceError
from vlm_trt.bundle.precision import Precision
from vlm_trt.commands.replica_costs import of_floors
from vlm_trt.engines.plan import plan
from vlm_trt.fleet.dispatch import by_prefix, least_busy
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.sizing import Question, Router, size
from vlm_trt.fleet.workload import Traffic
from vlm_trt.runtime.environment import environment

CARD, ABOVE_FLOOR, SLOTS, POSITIONS = "H100-80GB", 2.0, 16, 2048
RATES, FIRST_TOKEN_MS, BURSTS, TURNS = (2.0, 10.0, 40.0), (300.0, 1000.0, 3000.0), (1.0, 3.0), 4
TEXT_TOKENS, ANSWER_TOKENS = 64, 128
ROUTERS: dict[str, Router] = {"less busy": least_busy, "by prefix": by_prefix}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="for a checkpoint and a bundle, made once")
    parser.add_argument("--seconds", type=float, default=45.0, help="of each run of the check")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment(), "replicas": list(table())}
    if arguments.check is not None:
        from benchmarks.fleet_check import checked  # needs what exports

        found["check"] = checked(arguments.check, arguments.seconds)
    print(json.dumps(found, indent=1))


def table() -> Iterator[dict[str, Any]]:
    """Replicas by rate, time and bursts; conversations of several turns, so that prefixes count."""
    model, card = official(), card_named(CARD)
    limits = Limits(max_seq_tokens=POSITIONS, max_batch=SLOTS, max_images=4)
    one = plan(model, limits, Precision.FP16, weights_of(Precision.FP16))
    kind = Kind(costs=of_floors(model, one, card.gpu, ABOVE_FLOOR), slots=SLOTS)
    for rate in RATES:
        for first_token_ms in FIRST_TOKEN_MS:
            for burst in BURSTS:
                traffic = Traffic(
                    requests_per_second=rate,
                    text_tokens=TEXT_TOKENS,
                    answer_tokens=ANSWER_TOKENS,
                    pictures=1,
                    picture_tokens=model.most_picture_tokens,
                    burst=burst,
                    turns=TURNS,
                )
                row = {"requests_per_second": rate, "first_token_ms": first_token_ms, "burst": burst}
                yield row | needed(Question(traffic, first_token_ms, kind, POSITIONS))
                print(row, file=sys.stderr, flush=True)


def needed(question: Question) -> dict[str, Any]:
    """Replicas for each way to send requests, with all of them there and while one is gone."""
    found: dict[str, Any] = {}
    for name, router in ROUTERS.items():
        for dies in (False, True):
            try:
                one = size(question, router, one_dies=dies)
            except ResourceError as error:
                found[name + dies * ", one gone"] = str(error)
            else:
                found[name + dies * ", one gone"] = one.replicas
                if not dies:
                    found[name + ", figures"] = asdict(one.figures.time_to_first_token) | {  # type: ignore[arg-type]
                        "running": round(one.figures.running, 2), "known": round(one.figures.reused_share, 3),
                    }  # fmt: skip
    return found


if __name__ == "__main__":
    main()
