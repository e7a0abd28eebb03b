"""Answers with and without drafted tokens, in turn: tokens per second, tokens a step, and whether they are the same.

    python -m benchmarks.speculation BUNDLE [--precision fp32 …] > benchmarks/results/speculation.json
    python -m benchmarks.speculation BUNDLE --ids 298 --new-tokens 128

Without `--ids` the drawn scenes are asked about, by task: reading, grounding, and all else. With it the prompt is so
many random ids, and what is drafted is the answer of the turn before, wrong at every seventh place: of a model without
training it tells what checks cost, and what there is to gain.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.stages import progress
from vlm_trt.bundle.precision import Precision
from vlm_trt.bundle.signature import DRAFT_TOKENS
from vlm_trt.evaluation.evaluate import conversation
from vlm_trt.evaluation.synthetic import synthetic
from vlm_trt.families.messages import Prompt
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.environment import environment
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.options import Options
from vlm_trt.runtime.speculation import Drafts

_WARM_UP = 3  # turns, by the end of which an answer follows its own drafts


@dataclass(frozen=True)
class Run:
    """One answer."""

    seconds: float  # from its first token to its last
    tokens: int  # after the first
    steps: int
    ids: tuple[int, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", nargs="+", type=Precision, default=[Precision.FP32], choices=list(Precision))
    parser.add_argument("--count", type=int, default=96, help="questions")
    parser.add_argument("--ids", type=int, help="a prompt of so many random ids instead")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": environment()}
    for precision in arguments.precision:
        model = load(arguments.bundle, precision=precision, backend="cpu", allow_unverified=True)
        tasks = prompts(model, arguments.count) if arguments.ids is None else random_ids(model, arguments.ids)
        found[precision] = {
            task: compared(model, asked, arguments.new_tokens, arguments.turns, free=arguments.ids is not None)
            for task, asked in tasks.items()
        }
        progress(json.dumps({precision: found[precision]}))
    print(json.dumps(found, indent=1))


def prompts(model: VisionLanguageModel, count: int) -> dict[str, list[Prompt]]:
    found: dict[str, list[Prompt]] = defaultdict(list)
    for example in synthetic(count, 0, model.engine.model).examples:
        task = {"read": "read", "ground": "ground", "chat_ground": "ground"}.get(example.task, "others")
        found[task].append(model.build_prompt(conversation(example)))
    return dict(found)


def random_ids(model: VisionLanguageModel, count: int) -> dict[str, list[Prompt]]:
    ids = np.random.default_rng(0).integers(0, model.engine.model.decoder.vocab_size, count)
    return {"known answer": [Prompt(tuple(map(int, ids)), (), ())]}


def compared(
    model: VisionLanguageModel, asked: Sequence[Prompt], new_tokens: int, turns: int, *, free: bool
) -> dict[str, Any]:
    """Both ways, a prompt after the other; the first turns are not counted, and say what the known answers are."""
    options = Options(greedy=True, max_new_tokens=new_tokens, ignore_eos=free)
    runs: dict[bool, list[Run]] = {False: [], True: []}
    answers: dict[int, tuple[int, ...]] = {}
    for turn in range(_WARM_UP + turns):
        for at, prompt in enumerate(asked):
            # The second of two finds more in the processor's caches, so each is that in turn.
            for speculation in (False, True) if (turn + at) % 2 == 0 or not turn else (True, False):
                drafts = Known(answers[at]) if free and speculation else None
                run = answered(model, prompt, replace(options, speculation=speculation), drafts)
                if speculation or not turn:
                    answers[at] = run.ids
                if turn >= _WARM_UP and run.tokens:
                    runs[speculation].append(run)
    plain, drafted = runs.values()
    return {
        "answers": len(asked),
        "same": sum(one.ids == other.ids for one, other in zip(plain, drafted, strict=True)) / len(plain),
        "tokens_until_they_part": min(alike(one.ids, other.ids) for one, other in zip(plain, drafted, strict=True)),
        "tokens_per_second": {name: rate(found) for name, found in (("plain", plain), ("drafted", drafted))},
        "times_as_fast": round(sum(one.seconds for one in plain) / sum(one.seconds for one in drafted), 2),
        "times_as_fast_paired": round(median(a.seconds / b.seconds for a, b in zip(plain, drafted, strict=True)), 2),
        "tokens_a_step": round(sum(one.tokens for one in drafted) / sum(one.steps for one in drafted), 2),
    }


class Known(Drafts):
    """Of an answer that is known, wrong at every seventh place."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer, self._said = answer, 0

    def follow(self, answer: Sequence[int]) -> None:
        self._said = len(answer)

    def draft(self, most: int) -> list[int]:
        places = range(self._said, min(self._said + min(most, DRAFT_TOKENS), len(self._answer)))
        return [abs(self._answer[at] - (at % 7 == 0)) for at in places]


def answered(model: VisionLanguageModel, prompt: Prompt, options: Options, drafts: Drafts | None) -> Run:
    sequence = model.scheduler.submit(model.request(prompt, options))
    sequence.drafts = drafts
    while sequence.finish_reason is None:
        model.scheduler.step()
    times = sequence.clock.token_times
    steps = len(sequence.clock.decode_step_ms)
    return Run(times[-1] - times[0], len(sequence.ids) - 1, steps, tuple(sequence.ids))


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def rate(runs: Sequence[Run]) -> float:
    return round(sum(one.tokens for one in runs) / sum(one.seconds for one in runs), 1)


if __name__ == "__main__":
    main()
