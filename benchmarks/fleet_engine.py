"""Two replicas of a small model without a server, each on the time that its own thread computes, beside the simulation.

Used by `benchmarks.fleet`. A request arrives when its thread has computed for so long, and time in which there is
nothing to do is passed over; so other work on the machine disturbs it little. What steps take is measured by the same
clock. It is the runtime's own scheduler, model, cache and pictures; HTTP, threads and what two replicas take from each
other are not part of it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from time import thread_time
from typing import Any

import numpy as np

from benchmarks.fleet_check import (
    ANSWER_TOKENS,
    BUSY,
    CORES,
    POSITIONS,
    SLOTS,
    TEXT_TOKENS,
    each_ms,
    figures,
    made,
    parts_of,
    random_of,
    shown,
)
from benchmarks.stages import progress
from vlm_trt.families.messages import Image, Message, Text
from vlm_trt.fleet.costs import CHUNK_TOKENS, Costs, Curve
from vlm_trt.fleet.dispatch import in_turn
from vlm_trt.fleet.replica import Kind
from vlm_trt.fleet.simulation import simulate
from vlm_trt.fleet.workload import Arrival, Traffic, arrivals
from vlm_trt.runtime.choice import load
from vlm_trt.runtime.generation import Generation, Phase
from vlm_trt.runtime.model import VisionLanguageModel
from vlm_trt.runtime.requests import Request
from vlm_trt.runtime.sampler import Sampling

Times = tuple[float, float]  # seconds on its replica's clock when the first token of a request came, and its last
_GREEDY = Sampling(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, greedy=True, seed=0)


def on_their_own_clock(folder: Path, requests: int) -> dict[str, Any]:
    """What the replicas did and what is simulated of them, at several rates.

    Args:
        folder: of the bundle.
        requests: at each rate.
    """
    model = load(made(folder), backend="cpu", threads=1, allow_unverified=True)
    measurements = [measured(model)]
    runs = []
    for share in BUSY:
        rate = share * len(CORES) * 1000 / each_ms(measurements[0])
        runs.append((share, rate, *asked_of_both(model, rate, requests)))
        measurements.append(measured(model))  # caches are shared with whatever else runs, and that changes
    costs = mean(measurements)
    found: dict[str, Any] = {"costs": shown(costs), "measurements": [shown(one) for one in measurements], "runs": []}
    for share, rate, same, times in runs:
        found["runs"].append({"busy": share, "requests_per_second": round(rate, 3)} | compared(costs, same, times))
        progress(json.dumps(found["runs"][-1]))
    return found


def mean(measurements: Sequence[Costs]) -> Costs:
    def curve(name: str) -> Curve:
        points = zip(*(getattr(one, name).points for one in measurements), strict=True)
        return Curve(tuple((same[0][0], fmean(ms for _, ms in same)) for same in points))

    pictures = fmean(one.picture_ms for one in measurements)
    return Costs(picture_ms=pictures, chunk_ms=curve("chunk_ms"), step_ms=curve("step_ms"))


def asked(model: VisionLanguageModel, random: np.random.Generator, text_tokens: int, answer_tokens: int) -> Request:
    text, picture = parts_of(random, text_tokens)
    prompt = model.build_prompt([Message("user", (Text(text), Image(picture)))])
    return Request(prompt, _GREEDY, answer_tokens, ignore_eos=True, speculation=False)


def measured(model: VisionLanguageModel) -> Costs:
    """Medians of pictures and of steps by batch, and the line through prefills of three lengths."""
    random, scheduler, generator = random_of(0), model.scheduler, model.generator
    pictures, chunks = [], []
    for text_tokens in (TEXT_TOKENS // 2, TEXT_TOKENS, 2 * TEXT_TOKENS) * 5:
        one = scheduler.submit(asked(model, random, text_tokens, 2))
        pictures.append(seconds(generator.pictures.work))
        chunks.append((len(one.request.prompt.ids), seconds(lambda one=one: generator.prefill(one, CHUNK_TOKENS))))
        scheduler.cancel(one)
    fixed, each = np.linalg.lstsq([(1, tokens) for tokens, _ in chunks], [taken for _, taken in chunks], rcond=None)[0]
    steps = []
    for batch in (1 << power for power in range(SLOTS.bit_length())):
        running = [scheduler.submit(asked(model, random, TEXT_TOKENS, 60)) for _ in range(batch)]
        while any(one.phase is not Phase.DECODE for one in running):
            scheduler.step()
        steps.append((float(batch), 1000 * median(seconds(scheduler.step) for _ in range(30))))
        for one in running:
            scheduler.cancel(one)
    ends = tuple((float(tokens), 1000 * float(fixed + each * tokens)) for tokens in (0, CHUNK_TOKENS))
    return Costs(picture_ms=1000 * median(pictures), chunk_ms=Curve(ends), step_ms=Curve(tuple(steps)))


def seconds(work: Any) -> float:
    """That this thread computes for it."""
    began = thread_time()
    work()
    return thread_time() - began


def asked_of_both(model: VisionLanguageModel, rate: float, requests: int) -> tuple[list[Arrival], list[Times]]:
    """Requests sent to the replicas one after the other, and when each had its first token and its last."""
    traffic = Traffic(requests_per_second=rate, text_tokens=TEXT_TOKENS, answer_tokens=ANSWER_TOKENS, pictures=1)
    drawn, random = arrivals(traffic, requests, POSITIONS // 2, seed=1), random_of(1)
    every = [asked(model, random, one.prompt_tokens, one.answer_tokens) for one in drawn]
    same = [Arrival(one.at_s, len(own.prompt.ids), one.answer_tokens, 1) for one, own in zip(drawn, every, strict=True)]
    times: dict[int, Times] = {}
    for replica in range(len(CORES)):
        share = range(replica, requests, len(CORES))
        found = answered(model, [every[at] for at in share], [same[at].at_s for at in share])
        times |= dict(zip(share, found, strict=True))
    return same, [times[at] for at in range(requests)]


def compared(costs: Costs, same: Sequence[Arrival], times: Sequence[Times]) -> dict[str, Any]:
    """What came of requests, and what comes of them in the simulation."""
    outcome = simulate(same, Kind(costs=costs, slots=SLOTS), len(CORES), in_turn())
    real = figures([(one, *own) for one, own in zip(same, times, strict=True)])
    simulated = figures([(one.asked, one.first_s, one.end_s) for one in outcome.ended])
    return {
        "requests": len(same),
        "real": real,
        "simulated": simulated,
        "simulated / real": {name: round(simulated[name] / real[name], 3) for name in real},
    }


def answered(model: VisionLanguageModel, requests: Sequence[Request], at_s: Sequence[float]) -> list[Times]:
    """When the first token of each request came, and when it was answered."""
    model.generator.forget()
    began, passed = thread_time(), 0.0
    sequences: list[Generation] = []
    first, end = [0.0] * len(requests), [0.0] * len(requests)

    def now() -> float:
        return thread_time() - began + passed

    def tell() -> None:
        for number, one in enumerate(sequences):
            if one.ids and not first[number]:
                first[number] = now()
            if one.phase is Phase.ENDED and not end[number]:
                assert one.error is None, one.error
                end[number] = now()

    model.scheduler.prefilled = tell
    while not all(end):
        if len(sequences) == sum(map(bool, end)):  # nothing to do until the next one comes
            passed += max(0.0, at_s[len(sequences)] - now())
        while len(sequences) < len(requests) and at_s[len(sequences)] <= now():
            sequences.append(model.scheduler.submit(requests[len(sequences)]))
        model.scheduler.step()
        tell()
    model.scheduler.prefilled = lambda: None
    return list(zip(first, end, strict=True))
