"""Pictures encoded beside decode steps on a CPU, in a thread of their own, against one after the other, paired A B A B.

    python -m benchmarks.pictures_beside /data/scratch > benchmarks/results/pictures_beside.json

An answer is on its way when three others with a picture each arrive. What counts: the longest and the median time
between its tokens until the pictures are there, and the time until all four are answered. The model is that of
`benchmarks.serving`, with two compute threads.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.serving import PRECISION, made
from benchmarks.stages import progress
from tests.serving.pictures import encoded
from vlm_trt.families.messages import Image, Message
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.pictures import Pictures

NEW_TOKENS, OTHERS = 96, 3


@dataclass(frozen=True)
class Run:
    """What one answer waited for, milliseconds."""

    longest_ms: float
    median_ms: float
    all_ms: float


def run(model: VisionLanguageModel, seed: int, *, beside: bool) -> Run:
    """One answer on its way, three with pictures that nobody knows yet."""
    scheduler = model.scheduler
    model.generator.forget()
    model.generator.pictures = Pictures(model.generator.features, overlaps=beside)
    first = ask(model, "Tell a story.", None)
    while len(first.ids) < 8:
        scheduler.step()
    began = perf_counter()
    others = [ask(model, "What is it?", encoded(size=(448, 448), seed=seed + one)) for one in range(OTHERS)]
    gaps: list[float] = []
    last, seen = perf_counter(), len(first.ids)
    while scheduler.in_flight:
        scheduler.step()
        if len(first.ids) > seen and not all(one.asked.done() and one.phase is Phase.ENDED for one in others):
            gaps.append((perf_counter() - last) * 1000)
            last, seen = perf_counter(), len(first.ids)
    return Run(max(gaps), median(gaps), (perf_counter() - began) * 1000)


def ask(model: VisionLanguageModel, text: str, picture: bytes | None) -> Generation:
    options = Options(max_new_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    parts = (text,) if picture is None else (Image(picture), text)
    prompt = model.build_prompt([Message("user", parts)])
    return model.scheduler.submit(model.request(prompt, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", default="S")
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args()
    bundle = made(given.folder, given.size)
    model = load(bundle, precision=PRECISION, backend="cpu", allow_unverified=True)
    pairs: list[dict[str, Any]] = []
    for number in range(given.pairs + 1):
        both = {name: run(model, 100 * number, beside=name == "beside") for name in ("in turn", "beside")}
        progress(f"{number}: {both}")
        if number:  # the first warms up
            pairs.append({name: asdict(one) for name, one in both.items()})
    found = {
        name: {kind: round(median(pair[name][kind] for pair in pairs), 1) for kind in pairs[0][name]}
        for name in pairs[0]
    }
    print(json.dumps({"environment": environment(), "size": given.size, "median": found, "pairs": pairs}, indent=1))


if __name__ == "__main__":
    main()
